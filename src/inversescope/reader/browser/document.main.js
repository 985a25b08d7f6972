// The state, which the address holds; the choices above the map; keys.

const CHOICES = ["exact", "combined", "generated", "reweighted", "cache", "mcmc", "nearest", "shuffled", "prior", "majority"];
const TOLD = {
  exact: "all prompts of the prior, or many draws, weighed by the kernel: no generator",
  combined: "cached neighbours and accepted samples together",
  generated: "mean over accepted samples",
  reweighted: "accepted samples weighed by prior over q",
  cache: "cached prompts within the bandwidth, no generator",
  mcmc: "a chain of swap moves from the target prompt",
  nearest: "control: the nearest cached prompt",
  shuffled: "control: another target's samples",
  prior: "control: no activation at all",
  majority: "control: the most frequent label",
  samples: "stored samples of panel A, at its bandwidth: follows the slider",
};
const LIVE = "samples";
const ROOM = 344; // pixels across, of all maps
const HELP = [
  ["← → ↑ ↓", "another site (map in focus: press m)"], ["Shift click", "a site, in the other panel"], ["[ ]", "previous, next target prompt"], ["d", "draw a target prompt"],
  [", .", "smaller, larger bandwidth"], ["0", "back to the bandwidth of the draws"], ["f", "next feature (Shift: previous)"], ["e", "next estimator"], ["v", "next variant"],
  ["1 2", "panel A, panel B"], ["s", "swap panels"], ["c", "one panel or two"], ["w", "weigh samples by prior over q"], ["Esc", "release a word"], ["?", "this help"],
];
const TERMS = {
  rate: "share of the samples, by weight, that have the target's own label: the feature consistency rate (FCR), here of one target or as a mean over targets",
  "table, exact": "from fcr.csv, whole: not changed by the slider",
  live: "computed here from the stored samples at the slider's bandwidth",
  most: "the label with most weight, where it is not the target's own",
  "too far": "refused: its activation is outside the bandwidth",
  "no prompt": "refused: the text is not one of the prior's prompts",
  effective: "Kish's effective sample size of the weights",
  share: "share of the prior in the median ball. Between the tables' bandwidths it is interpolated on a logarithmic scale",
  effect: "change of the logit difference when a counterfactual prompt's activation is patched in at this site",
  colour: "a word is coloured where it agrees with the target prompt, the stronger the rarer it is. Click a word to hold it",
};

class App {
  constructor(study) {
    this.study = study;
    this.active = "A";
    this.state = this.first();
    this.read();
    this.common = this.countWords();
    this.panels = { A: new Panel(this, "A"), B: new Panel(this, "B") };
    const about = document.getElementById("about");
    about.textContent = study.about.join(" ");
    document.getElementById("panels").append(this.panels.A.node, this.panels.B.node);
    this.buildMaps();
    this.buildChoices();
    this.buildHelp();
    this.tellStored();
    this.connect();
    document.getElementById("loading").remove();
    document.getElementById("main").hidden = false;
    this.render();
    this.drawn = performance.now(); // milliseconds since the page was asked for
  }

  // ------------------------------------------------------------------------------------------------------------- state
  /** What is shown at first: the site that tells most of the first feature, by the first two sources; of one, the next site too. */
  first() {
    const { study } = this, estimators = this.estimators(), known = study.rates.length;
    let site = 0, best = -Infinity;
    for (let s = 0; known && s < study.sites.length; s++) {
      const row = study.rate("exact", "", "", study.headline, 0, s) ?? study.rate("cache", "", "", study.headline, 0, s);
      if (row && row.fcr > best && study.reads(0, s)) [site, best] = [s, row.fcr];
    }
    const other = study.sources.findIndex((_, o) => o > 0 && study.reads(o, site));
    const panel = (site, source) => ({ site, source, target: 0, epsilon: null });
    return {
      feature: 0, estimator: estimators[0], variant: study.sources[0]?.kind === "generated" ? study.sources[0].name : "", bandwidth: study.headline,
      byQ: false, two: study.sources.length > 1 || study.sites.length > 1, sort: "distance", 
      panels: { A: panel(site, 0), B: other > 0 ? panel(site, other) : panel((site + 1) % study.sites.length, 0) },
    };
  }

  estimators() {
    const known = new Set(this.study.rates.map(([name]) => name));
    return [...CHOICES.filter((name) => known.has(name)), LIVE];
  }

  /** Variants for which the tables have an estimator. */
  variants(estimator = this.state.estimator) {
    return [...new Set(this.study.rates.filter(([name]) => name === estimator).map(([, variant]) => variant))];
  }

  /** The variant and decoding of the table that the map shows. */
  get shownKey() {
    const { estimator, variant } = this.state, known = this.variants();
    const own = known.includes(variant) ? variant : (known.find((name) => !name) ?? known[0] ?? "");
    const decodings = this.study.rates.filter(([name, v]) => name === estimator && v === own).map(([, , decoding]) => decoding);
    return [estimator, own, decodings.includes("plain") ? "plain" : (decodings[0] ?? "")];
  }

  /** Take over what the address says, as far as it exists. */
  read() {
    const { study, state } = this, said = new URLSearchParams(location.hash.slice(1));
    const one = (name, known, take) => { if (known.includes(said.get(name))) take(said.get(name)); };
    one("feature", study.features.map((f) => f.name), (name) => { state.feature = study.features.findIndex((f) => f.name === name); });
    one("estimator", this.estimators(), (name) => { state.estimator = name; });
    one("variant", ["", ...study.rates.map(([, variant]) => variant)], (name) => { state.variant = name; });
    one("bandwidth", study.bandwidths, (name) => { state.bandwidth = name; });
    one("sort", Object.keys(SORTS), (name) => { state.sort = name; });
    one("weigh", ["0", "1"], (value) => { state.byQ = value === "1"; });
    one("panels", ["1", "2"], (value) => { state.two = value === "2"; });
    for (const letter of ["A", "B"]) {
      const [site, source, target, epsilon] = (said.get(letter) ?? "").split("~");
      const panel = state.panels[letter], s = study.places.get(site), o = study.sources.findIndex((one) => one.name === source);
      if (s !== undefined) panel.site = s;
      if (o >= 0) panel.source = o;
      if (/^\d+$/.test(target ?? "") && Number(target) < study.nTargets) panel.target = Number(target);
      if (said.has(letter)) panel.epsilon = Number(epsilon) > 0 && Number.isFinite(Number(epsilon)) ? Number(epsilon) : null;
    }
  }

  write() {
    const { study, state } = this, panel = ({ site, source, target, epsilon }) =>
      [study.sites[site].label, study.sources[source].name, target, epsilon ?? ""].join("~");
    const said = new URLSearchParams({
      feature: study.features[state.feature].name, estimator: state.estimator, variant: state.variant, bandwidth: state.bandwidth,
      weigh: state.byQ ? 1 : 0, sort: state.sort, panels: state.two ? 2 : 1, A: panel(state.panels.A), B: panel(state.panels.B),
    });
    this.written = `#${said}`;
    history.replaceState(null, "", this.written);
  }

  set(part) { Object.assign(this.state, part); this.render(); }

  /** Change what a panel shows; only what depends on the bandwidth is drawn anew if nothing else changes. */
  choose(letter, part) {
    const panel = this.state.panels[letter];
    Object.assign(panel, part);
    if (!this.study.reads(panel.source, panel.site)) {
      panel.source = Math.max(0, this.study.sources.findIndex((_, o) => this.study.reads(o, panel.site)));
      panel.epsilon = null;
    }
    if ("site" in part && !("epsilon" in part)) panel.epsilon = null;
    const slid = Object.keys(part).join() === "epsilon";
    if (slid) this.panels[letter].move();
    else this.panels[letter].render();
    if (!slid) this.paint();
    else if (letter === "A" && this.state.estimator === LIVE) {
      this.map.fill(this.values(), [0, 1]);
      this.readout(null);
    }
    if ("site" in part) this.showHypotheses();
    this.writeSoon();
  }

  writeSoon() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.write(), 120);
  }

  activate(letter) {
    this.active = letter;
    for (const panel of Object.values(this.panels)) panel.node.classList.toggle("active", panel.letter === letter);
  }

  step(letter, by) {
    const n = this.study.nTargets;
    this.choose(letter, { target: (this.state.panels[letter].target + by + n) % n });
  }

  draw(letter) { this.choose(letter, { target: Math.floor(Math.random() * this.study.nTargets) }); }

  render() {
    const { state } = this;
    document.getElementById("panels").classList.toggle("one", !state.two);
    this.panels.B.node.hidden = !state.two;
    if (!state.two) this.active = "A";
    this.activate(this.active);
    this.fillChoices();
    this.paint();
    for (const panel of Object.values(this.panels)) if (!panel.node.hidden) panel.render();
    this.showHypotheses();
    this.write();
  }

  // --------------------------------------------------------------------------------------------------------------- map
  buildMaps() {
    const { study } = this, onpick = (s, shift) => this.choose(shift && this.state.two ? (this.active === "A" ? "B" : "A") : this.active, { site: s });
    const onpoint = (s) => this.readout(s);
    // Rates and effects side by side, unless there are so many columns that one goes below the other.
    const columns = new Set(study.sites.map((site) => site.column)).size, half = study.effects.length && columns <= 14;
    const about = { room: half ? ROOM / 2 : ROOM, onpick, onpoint };
    this.map = new HeatMap(study.sites, { colours: CIVIDIS, ...about });
    this.maps = [this.map];
    if (study.effects.length) this.maps.push((this.effectMap = new HeatMap(study.sites, { colours: DIVERGING, ...about })));
    const node = document.getElementById("map");
    node.append(...this.maps.map((map) => map.svg));
    this.map.svg.setAttribute("tabindex", 0);
    this.map.svg.addEventListener("keydown", (event) => this.walk(event));
    for (const map of this.maps) map.svg.addEventListener("pointerdown", () => this.map.svg.focus({ preventScroll: true }));
  }

  /** Values of the map at all sites. */
  values() {
    const { study, state } = this;
    if (state.estimator === LIVE) return study.sites.map((_, s) => this.live(s));
    return study.sites.map((_, s) => study.rate(...this.shownKey, state.bandwidth, state.feature, s)?.fcr ?? NaN);
  }

  /** Panel A's source at another site, at the same share of the prior, or the same epsilon where the headline is one. */
  live(s) {
    const { study, state } = this, { source, site, epsilon } = state.panels.A;
    let at = study.epsilonOf(study.sources[source].bandwidth, s);
    if (epsilon !== null || !(at > 0)) {
      const same = study.headline.startsWith("share") ? study.epsilonAt(s, study.shareAt(site, this.panels.A.epsilon).share) : NaN;
      at = same > 0 ? same : this.panels.A.epsilon;
    }
    return study.reads(source, s) ? study.rateOverTargets(state.feature, source, s, at, state.byQ) : NaN;
  }

  paint() {
    const { study, state } = this, feature = study.features[state.feature];
    const marks = ["A", "B"].filter((letter) => letter === "A" || state.two).map((letter) => [state.panels[letter].site, letter]);
    this.map.title.textContent = `rate of ${feature.name}`;
    const chance = Number.isFinite(feature.chance) ? [{ at: feature.chance, text: feature.chance > 0.3 && feature.chance < 0.7 ? "chance" : "" }] : [];
    this.map.paint(this.values(), [0, 1], [{ at: 0, text: "0" }, ...chance, { at: 1, text: "1" }], marks);
    if (this.effectMap) {
      const effects = study.sites.map((_, s) => study.effect(state.feature, s)?.effect ?? NaN);
      const most = Math.max(...effects.filter(Number.isFinite).map(Math.abs), 0) || 1;
      const told = (x) => `${x > 0 ? "+" : ""}${Number(x.toPrecision(2))}`;
      this.effectMap.title.textContent = "effect of patching";
      this.effectMap.paint(effects, [-most, most], [{ at: -most, text: told(-most) }, { at: 0, text: "0" }, { at: most, text: `${told(most)} logits` }], marks);
    }
    this.readout(null);
  }

  /** One line on a site: the one that is pointed at, or panel A's. */
  readout(pointed) {
    const { study, state } = this, s = pointed ?? state.panels[this.active].site, feature = study.features[state.feature];
    const parts = [`${study.sites[s].label}: `];
    if (state.estimator === LIVE) parts.push(`${shown(this.live(s))} from stored samples`);
    else {
      const row = study.rate(...this.shownKey, state.bandwidth, state.feature, s);
      parts.push(row ? `${shown(row.fcr)}${Number.isFinite(row.ci_low) ? ` [${shown(row.ci_low)}, ${shown(row.ci_high)}]` : ""}, ${Number(row.ess.toPrecision(3))} effective samples` : "no rate");
      parts.push(`, ε = ${epsilonText(study.epsilonOf(state.bandwidth, s))}`);
    }
    if (Number.isFinite(feature.chance)) parts.push(`, chance ${shown(feature.chance)}`);
    const effect = study.effect(state.feature, s);
    if (effect) parts.push(`, effect ${shown(effect.effect, 2)} [${shown(effect.effect_low, 2)}, ${shown(effect.effect_high, 2)}] logits`);
    document.getElementById("readout").textContent = parts.join("");
  }

  /** Another site by an arrow key: the next one in that direction. */
  walk(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    const { cells } = this.map, here = cells[this.state.panels[this.active].site].place;
    let best = null, least = Infinity;
    cells.forEach(({ place }, s) => {
      const [dx, dy] = [(place.x - here.x) * by[0] + (place.y - here.y) * by[1], Math.abs((place.x - here.x) * by[1]) + Math.abs((place.y - here.y) * by[0])];
      if (dx > 1 && dx + 8 * dy < least) [best, least] = [s, dx + 8 * dy];
    });
    if (best !== null) this.choose(this.active, { site: best });
  }

  // ----------------------------------------------------------------------------------------------------------- choices
  buildChoices() {
    const { study } = this, form = document.getElementById("choices");
    const select = (label, pick) => {
      const node = make("select", { onchange: () => pick(node.value) });
      form.append(make("label", {}, `${label} `, node));
      return node;
    };
    this.feature = select("feature", (value) => this.set({ feature: Number(value) }));
    this.feature.append(...study.features.map((feature, f) => make("option", { value: f }, feature.name)));
    this.estimator = select("estimator", (estimator) => this.set({ estimator }));
    this.estimator.append(...this.estimators().map((name) => make("option", { value: name, title: TOLD[name] }, name === LIVE ? "stored samples, live" : name)));
    this.variant = select("variant", (variant) => this.set({ variant }));
    this.bandwidth = select("bandwidth", (bandwidth) => this.set({ bandwidth }));
    this.bandwidth.append(...study.bandwidths.map((name) => make("option", { value: name }, bandwidthText(name).replace("of the prior", "of prior"))));
    this.byQ = make("input", { type: "checkbox", onchange: () => this.set({ byQ: this.byQ.checked }) });
    this.two = make("input", { type: "checkbox", onchange: () => this.set({ two: this.two.checked }) });
    form.append(
      make("label", { title: "The slider's numbers: samples count by prior over q, truncated, instead of alike" }, this.byQ, " weigh by prior / q"),
      make("label", {}, this.two, " two panels"));
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  fillChoices() {
    const { state } = this, known = this.variants();
    this.feature.value = state.feature;
    this.estimator.value = state.estimator;
    this.estimator.title = TOLD[state.estimator];
    this.variant.replaceChildren(...(known.length ? known : [""]).map((name) => make("option", { value: name }, name || "–")));
    this.variant.disabled = known.length < 2;
    this.variant.value = this.shownKey[1];
    this.bandwidth.value = state.bandwidth;
    this.bandwidth.disabled = state.estimator === LIVE || !this.study.rates.length;
    this.byQ.checked = state.byQ;
    this.two.checked = state.two;
  }

  /** Hypotheses at the panels' sites, as they were found; those that the test did not accept are grey. */
  showHypotheses() {
    const { columns, rows } = this.study.hypotheses, node = document.getElementById("hypotheses");
    if (!rows.length) return;
    const { state } = this, sites = [...new Set(["A", "B"].filter((letter) => letter === "A" || state.two).map((letter) => this.study.sites[state.panels[letter].site].label))];
    const at = Object.fromEntries(columns.map((name, k) => [name, k])), listed = columns.filter((name) => !["site", "meaning", "accepted"].includes(name));
    const cell = (value) => (typeof value === "number" ? make("td", { class: "n" }, shown(value, value !== 0 && Math.abs(value) < 0.01 ? 4 : 2)) : make("td", {}, make("div", {}, value === null ? "" : String(value))));
    const table = (own) => make("table", {}, make("thead", {}, make("tr", {}, listed.map((name, k) => make("th", { class: typeof own[0][at[name]] === "number" ? "n" : null }, name)))),
      make("tbody", {}, own.map((row) => make("tr", { class: row[at.accepted] === false ? "refuted" : null, title: row[at.meaning] ?? null }, listed.map((name) => cell(row[at[name]]))))));
    node.replaceChildren(...sites.map((site) => {
      const own = rows.filter((row) => row[at.site] === site);
      return make("div", {}, make("h2", {}, `Hypotheses at ${site}`), own.length ? make("div", { class: "scroll" }, table(own)) : make("p", { class: "note" }, "Nothing was proposed here."));
    }));
  }

  // ------------------------------------------------------------------------------------------------------------- words
  /** In which share of the stored prompts each word is. */
  countWords() {
    const { study } = this, counts = new Map(), every = Math.max(1, Math.floor(study.texts.length / 2000));
    let n = 0;
    for (let i = 0; i < study.texts.length; i += every, n++)
      for (const piece of new Set(pieces(study.texts[i], study.unit))) counts.set(piece, (counts.get(piece) ?? 0) + 1);
    for (const [piece, count] of counts) counts.set(piece, count / n);
    return counts;
  }

  commonness(piece) { return this.common.get(piece) ?? 0; }

  hover(word) { if (!this.locked) this.point(word); }
  lock(word) { this.locked = this.locked === word ? null : word; this.point(this.locked); }

  /** Mark a word wherever it is, and say how much of each panel's weight has it. */
  point(word) {
    if (this.pointed === word) return;
    this.pointed = word;
    for (const node of document.querySelectorAll(".w.pointed")) node.classList.remove("pointed");
    if (word !== null) for (const node of document.querySelectorAll(`.w[data-word="${CSS.escape(word)}"]`)) node.classList.add("pointed");
    for (const panel of Object.values(this.panels)) {
      if (panel.node.hidden) continue;
      const holds = panel.rows.filter((row) => row.sum > 0 && pieces(this.study.texts[row.text], this.study.unit).includes(word));
      const share = holds.reduce((sum, row) => sum + row.sum, 0) / panel.here.sum;
      panel.word.textContent = word === null ? "" : `“${word}” in ${percent(share)} here, ${percent(this.commonness(word))} of all prompts`;
    }
  }

  // -------------------------------------------------------------------------------------------------------- the others
  tellStored() {
    const { study } = this, { keep, most } = study;
    document.getElementById("stored").textContent =
      (keep < most ? `Stored are the first ${keep} samples of each source, site and target prompt (of ${most} at most). ` : `All ${most ? "" : "0 "}samples at these bandwidths are stored. `) +
      "Rates of the map, “table” and “exact” come from the workflow's tables, whole. What follows the slider is computed here from the stored samples, " +
      "which were drawn for one bandwidth and are judged at another. Distances are stored without loss, log q to a hundredth of a nat, exact rates of single targets to four digits.";
  }

  buildHelp() {
    const list = (entries) => make("dl", {}, entries.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
    const help = document.getElementById("help");
    help.append(make("h2", { id: "help-title" }, "Keys"), list(HELP), make("h2", {}, "Terms"), list(Object.entries(TERMS)),
      make("button", { onclick: () => help.close() }, "Close"));
  }

  connect() {
    const click = (id, run) => document.getElementById(id).addEventListener("click", run);
    click("help-open", () => document.getElementById("help").showModal());
    click("print", () => window.print());
    click("copy", (event) => this.copy(event.target));
    click("rates-csv", () => this.exportRates());
    click("map-svg", () => save(`${this.fileName()}.svg`, "image/svg+xml", picture(this.maps, this.caption())));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => { if (location.hash !== this.written) { this.read(); this.render(); } });
    window.addEventListener("resize", () => { for (const panel of Object.values(this.panels)) if (!panel.node.hidden) panel.drawStrip(); });
  }

  async copy(button) {
    this.write();
    try { await navigator.clipboard.writeText(location.href); button.textContent = "Copied"; }
    catch { button.textContent = "It is in the address"; }
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
    if (event.key === "Escape") { this.locked = null; this.point(null); return; }
    const at = event.target;
    if (at.tagName === "SELECT" || (at.tagName === "INPUT" && at.type === "text")) return;
    const { state, study, active } = this, next = (values, value, by = 1) => values[(values.indexOf(value) + by + values.length) % values.length];
    const panel = this.panels[active];
    const run = {
      "[": () => this.step(active, -1), "]": () => this.step(active, 1), d: () => this.draw(active),
      ",": () => panel.nudge(-1), ".": () => panel.nudge(1), 0: () => this.choose(active, { epsilon: null }),
      f: () => this.set({ feature: (state.feature + 1) % study.features.length }),
      F: () => this.set({ feature: (state.feature + study.features.length - 1) % study.features.length }),
      e: () => this.set({ estimator: next(this.estimators(), state.estimator) }),
      v: () => this.set({ variant: next(this.variants(), this.shownKey[1]) ?? state.variant }),
      1: () => this.activate("A"), 2: () => state.two && this.activate("B"),
      c: () => this.set({ two: !state.two }), w: () => this.set({ byQ: !state.byQ }),
      s: () => this.set({ panels: { A: state.panels.B, B: state.panels.A } }),
      m: () => this.map.svg.focus(), "?": () => document.getElementById("help").showModal(),
    }[event.key];
    if (!run) return;
    event.preventDefault();
    run();
    this.readout(null);
  }

  // ------------------------------------------------------------------------------------------------------------ export
  caption() {
    const [estimator, variant, decoding] = this.shownKey, { state, study } = this;
    return [study.title, study.features[state.feature].name, estimator, variant, decoding, estimator === LIVE ? "" : bandwidthText(state.bandwidth)].filter(Boolean).join(", ");
  }

  fileName() { return this.caption().replace(/[^\p{L}\p{N}.=%-]+/gu, "_"); }

  exportRates() {
    const { study, state } = this, [estimator, variant, decoding] = this.shownKey, live = estimator === LIVE;
    const columns = ["site", "layer", "column", "feature", "estimator", "variant", "decoding", "bandwidth", "epsilon", "share", "fcr", "ci_low", "ci_high", "ess", "chance", "effect", "effect_low", "effect_high"];
    const b = study.bandwidths.indexOf(state.bandwidth), values = live ? this.values() : null;
    const rows = study.sites.map((site, s) => {
      const row = live ? { fcr: values[s] } : (study.rate(estimator, variant, decoding, state.bandwidth, state.feature, s) ?? {});
      const effect = study.effect(state.feature, s) ?? {}, at = b * study.sites.length + s;
      const bandwidth = live ? ["", "", ""] : [state.bandwidth, study.arrays.epsilon[at], study.arrays.share[at]];
      return [site.label, site.layer, site.column, study.features[state.feature].name, estimator, live ? study.sources[state.panels.A.source].name : variant, decoding, ...bandwidth,
        row.fcr, row.ci_low, row.ci_high, row.ess, study.features[state.feature].chance, effect.effect, effect.effect_low, effect.effect_high];
    });
    save(`${this.fileName()}.csv`, "text/csv", csv(columns, rows));
  }
}

(async () => {
  try {
    window.app = new App(new Study(await unpack(document.getElementById("data").textContent)));
  } catch (error) {
    document.getElementById("loading").textContent = `This page cannot be shown: ${error.message}. A browser of 2023 or later is needed.`;
    throw error;
  }
})();
