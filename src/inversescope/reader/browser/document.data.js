"use strict";
// The embedded data: base64 of a gzip of a JSON description and of arrays (encode.py). Nothing is fetched.

const TYPES = { f4: Float32Array, f8: Float64Array, u4: Uint32Array, i4: Int32Array, u2: Uint16Array, i2: Int16Array, u1: Uint8Array };

/** Bytes of base64 text. */
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** One array, whose bytes lie sorted by significance. */
function arrayOf({ type, length, at }, bytes) {
  const array = new TYPES[type](length);
  const own = new Uint8Array(array.buffer);
  const width = array.BYTES_PER_ELEMENT;
  for (let plane = 0; plane < width; plane++) {
    const from = at + plane * length;
    for (let i = 0, to = plane; i < length; i++, to += width) own[to] = bytes[from + i];
  }
  return array;
}

/** The description and the arrays by name. */
async function unpack(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const bytes = new Uint8Array(buffer, 4 + length);
  const arrays = {};
  for (const [name, one] of Object.entries(about.arrays)) arrays[name] = arrayOf(one, bytes);
  return { about, arrays };
}
