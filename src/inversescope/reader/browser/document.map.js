// Elements, colours, and the map of layers and heads.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (on...) and children; texts are never read as markup. */
function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const DIVERGING = ["#0072b2", "#f7f7f7", "#d55e00"];

/** Colour at x in [0, 1] of a list of colours. */
function mix(colours, x) {
  const place = Math.min(Math.max(x, 0), 1) * (colours.length - 1), low = Math.min(Math.floor(place), colours.length - 2);
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  const rgb = [0, 1, 2].map((k) => Math.round(part(colours[low], k) + (part(colours[low + 1], k) - part(colours[low], k)) * (place - low)));
  return `#${rgb.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
}

/** Whether black is read better than white on a colour. */
function isLight(hex) {
  const [r, g, b] = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}

/** A number for readers; a dash where there is none. */
function shown(value, digits = 3) { return Number.isFinite(value) ? value.toFixed(digits) : "–"; }
function percent(value) {
  if (!Number.isFinite(value)) return "–";
  const share = 100 * value;
  return `${share !== 0 && Math.abs(share) < 0.1 ? share.toPrecision(1) : share < 10 ? Number(share.toPrecision(2)) : Math.round(share)}%`;
}
function epsilonText(value) { return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "–"; }
/** A bandwidth of the tables for readers: "share 0.01" is "1% of the prior". */
function bandwidthText(bandwidth) {
  const [kind, value] = bandwidth.split(" ");
  return kind === "share" ? `${Number((100 * value).toPrecision(3))}% of the prior` : `ε = ${value}`;
}

/** Where each site stands: rows are layers, columns heads and kinds; a gap where heads, positions or kinds begin. `room`: pixels. */
function layout(sites, room) {
  const layers = [...new Set(sites.map((site) => site.layer))].sort((a, b) => a - b);
  const columns = [...new Map(sites.map((site) => [site.column, site])).values()].sort((a, b) => {
    for (let k = 0; k < a.order.length; k++) {
      if (a.order[k] !== b.order[k]) return a.order[k] < b.order[k] ? -1 : 1;
    }
    return 0;
  });
  const gaps = columns.filter((site, c) => c && begins(site, columns[c - 1])).length;
  const width = Math.min(30, Math.max(9, (room - 6 * gaps) / columns.length));
  const height = layers.length <= 6 ? 28 : layers.length <= 14 ? 22 : layers.length <= 34 ? 13.5 : 9;
  const x = new Map();
  let at = 0;
  columns.forEach((site, c) => {
    if (c && begins(site, columns[c - 1])) at += 6;
    x.set(site.column, at);
    at += width;
  });
  return { layers, columns, x, width, height, across: at, down: layers.length * height };
}

/** Whether a column is of another position than the one before it, or the first that is no head's. */
function begins(site, before) { return site.order[0] !== before.order[0] || site.order[1] !== before.order[1]; }

/** A map of a number at each site. `paint` fills its cells: a site's value and its marks. */
class HeatMap {
  constructor(sites, { colours, room, onpick, onpoint }) {
    this.sites = sites;
    this.colours = colours;
    const left = 32, plan = layout(sites, room - left - 4);
    const column = (site) => (/^H\d+$/.test(site.column) ? site.column.slice(1) : site.column);
    const longest = Math.max(...plan.columns.map((site) => column(site).length));
    const top = 22 + (longest > 2 ? longest * 5.4 + 4 : 14);
    const size = { width: Math.max(left + plan.across + 4, 172), height: top + plan.down + 38 };
    this.svg = make("svg:svg", {
      ...size, viewBox: `0 0 ${size.width} ${size.height}`, "font-family": "system-ui, sans-serif", "font-size": 10, role: "img", fill: "#333",
    });
    this.title = make("svg:text", { x: left, y: 12, "font-size": 12, "font-weight": 600, fill: "#000" });
    this.svg.append(this.title);
    for (const site of plan.columns) {
      const x = left + plan.x.get(site.column) + plan.width / 2, name = column(site);
      this.svg.append(name.length > 2
        ? make("svg:text", { transform: `translate(${x + 3.5} ${top - 4}) rotate(-90)` }, name)
        : make("svg:text", { x, y: top - 4, "text-anchor": "middle" }, name));
    }
    for (const [row, layer] of plan.layers.entries())
      if (plan.height >= 11 || row % 2 === 0)
        this.svg.append(make("svg:text", { x: left - 4, y: top + (row + 0.5) * plan.height + 3.5, "text-anchor": "end" }, String(layer)));
    this.svg.append(make("svg:text", { x: left - 4, y: top - 4, "text-anchor": "end", fill: "#767676", "font-size": 9 }, "layer"));
    const pick = onpick, point = onpoint;
    this.cells = sites.map((site, s) => {
      const x = left + plan.x.get(site.column), y = top + plan.layers.indexOf(site.layer) * plan.height;
      const place = { x: x + 0.5, y: y + 0.5, width: plan.width - 1, height: plan.height - 1 };
      const cell = make("svg:rect", { ...place, class: "cell", "data-site": site.label });
      cell.addEventListener("click", (event) => pick(s, event.shiftKey));
      cell.addEventListener("pointerenter", () => point(s));
      cell.addEventListener("pointerleave", () => point(null));
      cell.append(make("svg:title", {}, site.label));
      this.svg.append(cell);
      return { cell, place };
    });
    this.across = plan.across;
    this.marks = make("svg:g", { "pointer-events": "none" });
    this.legend = make("svg:g", { transform: `translate(${left} ${top + plan.down + 8})` });
    this.svg.append(this.marks, this.legend);
  }

  /** Values of all sites (NaN: none), what the ends of the scale stand for, and ticks on it. */
  paint(values, [low, high], ticks, marks) {
    this.marked = marks;
    this.fill(values, [low, high]);
    const span = Math.max(80, Math.min(this.across, 220)), steps = 40, parts = [];
    for (let k = 0; k < steps; k++)
      parts.push(make("svg:rect", { x: (k * span) / steps, y: 0, width: span / steps + 0.4, height: 8, fill: mix(this.colours, (k + 0.5) / steps) }));
    for (const { at, text } of ticks) {
      const x = ((at - low) / (high - low)) * span;
      parts.push(make("svg:line", { x1: x, x2: x, y1: 0, y2: 12, stroke: "#000", "stroke-width": 0.8 }));
      const anchor = x < 12 ? "start" : x > span - 12 ? "end" : "middle";
      parts.push(make("svg:text", { x, y: 21, "text-anchor": anchor, "font-size": 9 }, text));
    }
    this.legend.replaceChildren(...parts);
  }

  /** Other values of all sites on the scale that is drawn; marks stay where they are. */
  fill(values, [low, high]) {
    this.fills = this.cells.map(({ cell }, s) => {
      const known = Number.isFinite(values[s]);
      const fill = known ? mix(this.colours, (values[s] - low) / (high - low)) : "#ffffff";
      if (fill !== this.fills?.[s]) cell.setAttribute("fill", fill);
      cell.setAttribute("stroke", known ? "none" : "#cccccc");
      if (known) cell.dataset.value = values[s];
      else delete cell.dataset.value;
      return fill;
    });
    this.mark(this.marked);
  }

  /** Frames with a letter around chosen sites: [site, letter, whether it is the active one]. */
  mark(marks) {
    const letters = new Map();
    for (const [s, letter] of marks) letters.set(s, (letters.get(s) ?? "") + letter);
    this.marks.replaceChildren(...[...letters].flatMap(([s, letter]) => {
      const { x, y, width, height } = this.cells[s].place, ink = isLight(this.fills[s]) ? "#000" : "#fff";
      const around = { x: x - 1, y: y - 1, width: width + 2, height: height + 2, fill: "none" };
      return [
        make("svg:rect", { ...around, stroke: "#fff", "stroke-width": 4 }),
        make("svg:rect", { ...around, stroke: "#000", "stroke-width": 2 }),
        make("svg:text", { x: x + width / 2, y: y + height / 2 + 3.3, "text-anchor": "middle", "font-weight": 700, "font-size": letter.length > 1 && width < 16 ? 7.5 : 9.5, fill: ink }, letter),
      ];
    }));
  }
}

/** A picture of several maps side by side, as a file's text. */
function picture(maps, caption) {
  const gap = 18, sizes = maps.map((map) => [Number(map.svg.getAttribute("width")), Number(map.svg.getAttribute("height"))]);
  const width = Math.max(sizes.reduce((sum, [w]) => sum + w + gap, -gap), 420), height = Math.max(...sizes.map(([, h]) => h)) + 24;
  const whole = make("svg:svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif", "font-size": 10, fill: "#333" });
  whole.append(make("svg:rect", { width, height, fill: "#fff" }));
  let x = 0;
  maps.forEach((map, k) => {
    const group = make("svg:g", { transform: `translate(${x} 0)` }, ...[...map.svg.childNodes].map((node) => node.cloneNode(true)));
    for (const cell of group.querySelectorAll("[class]")) cell.removeAttribute("class");
    whole.append(group);
    x += sizes[k][0] + gap;
  });
  whole.append(make("svg:text", { x: 4, y: height - 8, fill: "#555" }, caption));
  return new XMLSerializer().serializeToString(whole);
}

/** Have the browser save a text as a file. */
function save(name, type, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Rows as CSV. */
function csv(columns, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
