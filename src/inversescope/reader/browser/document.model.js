// What is computed from the data: rates, refusal and effective sample sizes at any bandwidth. No element of the page is touched.

class Study {
  constructor({ about, arrays }) {
    Object.assign(this, about);
    this.arrays = arrays;
    this.shape = [this.sources.length, this.sites.length, arrays.target.length];
    this.start = new Uint32Array(arrays.stored.length + 1);
    for (let i = 0; i < arrays.stored.length; i++) this.start[i + 1] = this.start[i] + arrays.stored[i];
    this.room = new Float64Array(arrays.stored.reduce((most, n) => Math.max(most, n), 0));
    this.places = new Map(this.sites.map((site, s) => [site.label, s]));
    this.known = this.sites.map((_, s) => this.pointsOf(s));
    this.agreement = { key: "" };
  }

  get nTargets() { return this.shape[2]; }
  targetText(t) { return this.texts[this.arrays.target[t]]; }
  isCache(o) { return this.sources[o].kind === "cache"; }
  cell(o, s, t) { return (o * this.shape[1] + s) * this.shape[2] + t; }
  label(f, text) { return this.arrays.label[f * this.texts.length + text]; }
  nameOf(f, code) { return code < 0 ? "–" : this.features[f].values[code]; }
  reads(o, s) {
    const from = this.cell(o, s, 0);
    return this.arrays.stored.subarray(from, from + this.nTargets).some((n) => n > 0);
  }

  // ------------------------------------------------------------------------------------------------------- bandwidths
  epsilonOf(bandwidth, s) {
    const b = this.bandwidths.indexOf(bandwidth);
    return b < 0 ? NaN : this.arrays.epsilon[b * this.sites.length + s];
  }

  /** Points (epsilon, share) of a site's tables, ascending. */
  points(s) { return this.known[s]; }

  pointsOf(s) {
    const n = this.sites.length;
    const found = this.bandwidths.map((name, b) => ({
      name, epsilon: this.arrays.epsilon[b * n + s], share: this.arrays.share[b * n + s],
    }));
    return found.filter((p) => p.epsilon > 0).sort((a, b) => a.epsilon - b.epsilon);
  }

  /** Share of the prior at an epsilon, between the tables' on a logarithmic scale; `beyond`: -1 below them, 1 above. */
  shareAt(s, epsilon) {
    const known = this.points(s).filter((p) => p.share > 0);
    if (!known.length || (known.length === 1 && epsilon !== known[0].epsilon)) return { share: NaN, beyond: 0 };
    const beyond = epsilon < known[0].epsilon ? -1 : epsilon > known[known.length - 1].epsilon ? 1 : 0;
    return { share: between(known, "epsilon", "share", epsilon), beyond };
  }

  epsilonAt(s, share) {
    const known = this.points(s).filter((p) => p.share > 0);
    return known.length > 1 ? between(known, "share", "epsilon", share) : NaN;
  }

  /** Least and largest epsilon of a site's slider. */
  range(s) {
    const known = this.points(s);
    if (!known.length) return [0.001, 1];
    return [known[0].epsilon / 10, known[known.length - 1].epsilon * 2];
  }

  // ----------------------------------------------------------------------------------------------------------- weights
  support(epsilon) { return this.kernel === "hard" ? epsilon : 3.7 * epsilon; }

  /**
   * Weights of one source's stored samples of one target at one bandwidth.
   * Candidates count alike, or by prior * kernel / q, truncated (`byQ`); cached prompts count by the kernel. Refused ones: 0.
   * `room`: where the weights may be written.
   */
  weigh(o, s, t, epsilon, byQ, room = null) {
    const { distance, log_q, text, log_prior } = this.arrays;
    const cell = this.cell(o, s, t), from = this.start[cell], n = this.start[cell + 1] - from;
    const cache = this.isCache(o), weight = room ? room.subarray(0, n) : new Float64Array(n);
    // Cached distances are compared in single precision, as the workflow does.
    const support = cache ? Math.fround(this.support(epsilon)) : this.support(epsilon);
    const smooth = (cache || byQ) && this.kernel !== "hard";
    let parse = 0, far = 0, accepted = 0;
    for (let i = 0; i < n; i++) {
      const d = distance[from + i];
      weight[i] = 0;
      if (Number.isNaN(d)) parse++;
      else if (!(d < support)) far++;
      else {
        weight[i] = smooth ? Math.exp(-((d / epsilon) ** 2)) : 1;
        accepted++;
      }
    }
    if (byQ && !cache && accepted) {
      const log = (i) => Math.log(weight[i]) + log_prior[text[from + i]] - log_q[from + i] * this.step;
      let top = -Infinity, total = 0;
      for (let i = 0; i < n; i++) if (weight[i]) top = Math.max(top, log(i));
      // A weight that vanishes beside the largest still belongs to an accepted sample.
      for (let i = 0; i < n; i++) if (weight[i]) total += weight[i] = Math.max(Math.exp(log(i) - top), Number.MIN_VALUE);
      const most = (total / accepted) * Math.sqrt(accepted);
      for (let i = 0; i < n; i++) weight[i] = Math.min(weight[i], most);
    }
    let sum = 0, squares = 0;
    for (let i = 0; i < n; i++) { sum += weight[i]; squares += weight[i] * weight[i]; }
    return { from, n, weight, sum, ess: sum > 0 ? (sum * sum) / squares : 0, accepted, parse, far };
  }

  /** Share of the weight that has the target's own label. */
  match(f, t, weighed) {
    if (!(weighed.sum > 0)) return NaN;
    const own = this.label(f, this.arrays.target[t]), base = f * this.texts.length;
    const { label, text } = this.arrays, { from, n, weight } = weighed;
    let sum = 0;
    for (let i = 0; i < n; i++) if (weight[i] && label[base + text[from + i]] === own) sum += weight[i];
    return sum / weighed.sum;
  }

  /** The label with most weight, and its share of it. */
  top(f, weighed) {
    const sums = new Map(), base = f * this.texts.length, { label, text } = this.arrays;
    for (let i = 0; i < weighed.n; i++) {
      const code = label[base + text[weighed.from + i]];
      if (weighed.weight[i]) sums.set(code, (sums.get(code) ?? 0) + weighed.weight[i]);
    }
    let best = -1, most = 0;
    for (const [code, sum] of sums) if (sum > most || (sum === most && code < best)) [best, most] = [code, sum];
    return { code: best, share: most / weighed.sum };
  }

  /** Means over the targets that count: rates of some features, refusal, effective sample size (median). */
  overTargets(o, s, epsilon, byQ, features = this.features.map((_, f) => f)) {
    const rates = features.map(() => 0), known = features.map(() => 0), sizes = [];
    let targets = 0, parse = 0, far = 0;
    for (let t = 0; t < this.nTargets; t++) {
      const total = this.arrays.stored[this.cell(o, s, t)];
      if (!this.arrays.counted[t] || !(total || this.isCache(o))) continue;
      const weighed = this.weigh(o, s, t, epsilon, byQ, this.room);
      targets++;
      parse += weighed.parse / weighed.n;
      far += weighed.far / weighed.n;
      sizes.push(weighed.ess);
      features.forEach((f, k) => {
        const value = this.match(f, t, weighed);
        if (Number.isFinite(value)) { rates[k] += value; known[k]++; }
      });
    }
    const refused = this.isCache(o) ? [NaN, NaN] : [parse / targets, far / targets];
    return { rates: rates.map((sum, k) => sum / known[k]), parse: refused[0], far: refused[1], ess: median(sizes), targets };
  }

  /** The rate of one feature in `overTargets`, fast enough to be asked for at all sites with each move of the slider. */
  rateOverTargets(f, o, s, epsilon, byQ) {
    if (byQ || this.kernel !== "hard") return this.overTargets(o, s, epsilon, byQ, [f]).rates[0];
    const { distance, counted } = this.arrays, { first, agrees } = this.agreeing(f, o);
    const support = this.isCache(o) ? Math.fround(epsilon) : epsilon;
    let sum = 0, known = 0;
    for (let t = 0; t < this.nTargets; t++) {
      if (!counted[t]) continue;
      const cell = this.cell(o, s, t), end = this.start[cell + 1];
      let accepted = 0, same = 0;
      for (let i = this.start[cell]; i < end; i++) {
        const inside = distance[i] < support ? 1 : 0;
        accepted += inside;
        same += inside & agrees[i - first];
      }
      if (accepted) { sum += same / accepted; known++; }
    }
    return sum / known;
  }

  /** Which stored samples of a source have their target's label, from the sample `first` on; kept until another is asked for. */
  agreeing(f, o) {
    if (this.agreement.key === `${f} ${o}`) return this.agreement;
    const { text, label, target } = this.arrays, base = f * this.texts.length;
    const from = this.cell(o, 0, 0), to = this.cell(o + 1, 0, 0), first = this.start[from];
    const agrees = new Uint8Array(this.start[to] - first);
    for (let cell = from; cell < to; cell++) {
      const own = label[base + target[(cell - from) % this.nTargets]];
      for (let i = this.start[cell]; i < this.start[cell + 1]; i++) agrees[i - first] = label[base + text[i]] === own ? 1 : 0;
    }
    return (this.agreement = { key: `${f} ${o}`, first, agrees });
  }

  /** Distance up to which all cached prompts near a target are stored. */
  reach(o, s, t) {
    const cell = this.cell(o, s, t), { stored, total, reach, distance } = this.arrays;
    return total[cell] > stored[cell] ? distance[this.start[cell + 1] - 1] : reach[cell];
  }

  // ------------------------------------------------------------------------------------------------------------ tables
  /** A row of the table of rates, or null. */
  rate(estimator, variant, decoding, bandwidth, f, s) {
    const k = this.rates.findIndex((key) => key[0] === estimator && key[1] === variant && key[2] === decoding);
    const b = this.bandwidths.indexOf(bandwidth);
    if (k < 0 || b < 0) return null;
    const at = ((k * this.bandwidths.length + b) * this.features.length + f) * this.sites.length + s;
    return this.row("rates", ["fcr", "ci_low", "ci_high", "ess"], at);
  }

  refused(variant, decoding, bandwidth, s) {
    const k = this.refusal.findIndex((key) => key[0] === variant && key[1] === decoding);
    const b = this.bandwidths.indexOf(bandwidth);
    if (k < 0 || b < 0) return null;
    const names = ["refusal_rate", "ci_low", "ci_high", "parse_refusal", "distance_refusal", "entropy_gap"];
    return this.row("refusal", names, (k * this.bandwidths.length + b) * this.sites.length + s);
  }

  effect(f, s) {
    return this.effects.length ? this.row("effects", ["effect", "effect_low", "effect_high", "share"], f * this.sites.length + s) : null;
  }

  exactOf(f, s, t) {
    const value = this.arrays.exact?.[(f * this.sites.length + s) * this.nTargets + t] ?? -1;
    return value < 0 ? NaN : value / 10000;
  }

  row(table, names, at) {
    const row = Object.fromEntries(names.map((name) => [name, tabled(this.arrays[`${table}.${name}`][at])]));
    return Number.isFinite(row[names[0]]) ? row : null;
  }
}

/** A stored number as the table has it: six significant digits. */
function tabled(value) { return Number(value.toPrecision(6)); }

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  if (!sorted.length) return NaN;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** `to` where `from` is x, on a straight line in logarithms through the two nearest known points. */
function between(known, from, to, x) {
  const points = known.filter((p, i) => !i || p[from] > known[i - 1][from]);
  if (points.length < 2) return points[0][to];
  let i = points.findIndex((p) => p[from] >= x);
  i = Math.min(Math.max(i < 0 ? points.length - 1 : i, 1), points.length - 1);
  const [a, b] = [points[i - 1], points[i]];
  const share = Math.log(x / a[from]) / Math.log(b[from] / a[from]);
  return a[to] * (b[to] / a[to]) ** share;
}

// -------------------------------------------------------------------------------------------------------------- tokens
const WORDS = /\s+|[\p{L}\p{M}\p{N}_]+|[^\s\p{L}\p{M}\p{N}_]/gu;

/** Pieces of a text: words, marks and spaces, or characters. */
function pieces(text, unit) { return unit === "character" ? Array.from(text) : (text.match(WORDS) ?? []); }

/** Which pieces of a text are in the longest common sequence with the target's. */
function agreeing(mine, theirs) {
  const n = mine.length, m = theirs.length;
  const length = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      length[i][j] = mine[i] === theirs[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  const same = new Array(n).fill(false);
  for (let i = 0, j = 0; i < n && j < m;) {
    if (mine[i] === theirs[j]) { same[i++] = true; j++; }
    else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return same;
}
