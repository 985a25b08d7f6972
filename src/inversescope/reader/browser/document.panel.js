// One panel: samples of one source at one site for one target prompt, and what they say at a bandwidth that is slid.

const STEPS = 2000;
const SORTS = { distance: "nearest first", weight: "heaviest first", draw: "as drawn" };

class Panel {
  /** `choice` is this panel's part of the state: site, source, target (numbers), epsilon (null: the source's own bandwidth). */
  constructor(app, letter) {
    this.app = app;
    this.study = app.study;
    this.letter = letter;
    this.build();
  }

  get choice() { return this.app.state.panels[this.letter]; }
  get source() { return this.study.sources[this.choice.source]; }
  get own() { return this.study.epsilonOf(this.source.bandwidth, this.choice.site); }
  get epsilon() { return this.choice.epsilon ?? (this.own > 0 ? this.own : this.study.range(this.choice.site)[1] / 2); }

  build() {
    const { study, app } = this, change = (part) => app.choose(this.letter, part);
    const select = (label, options, pick) => {
      const node = make("select", { "aria-label": `${label} of panel ${this.letter}`, onchange: () => pick(Number(node.value)) });
      node.append(...options.map((text, k) => make("option", { value: k }, text)));
      return node;
    };
    this.site = select("Site", study.sites.map((site) => site.label), (site) => change({ site }));
    this.from = select("Source", study.sources.map((source) => source.name), (source) => change({ source, epsilon: null }));
    const targets = Array.from({ length: study.nTargets }, (_, t) => `${t}: ${study.targetText(t).slice(0, 70)}`);
    this.target = select("Target prompt", targets, (target) => change({ target }));
    this.prompt = make("p", { class: "prompt" });
    this.strip = make("svg:svg", { class: "strip", height: 34, "aria-hidden": "true" });
    this.slider = make("input", {
      type: "range", min: 0, max: STEPS, step: 1, "aria-label": `Bandwidth of panel ${this.letter}`,
      oninput: () => change({ epsilon: this.slid(Number(this.slider.value)) }),
    });
    const typed = (label, read) => {
      const node = make("input", { type: "text", inputmode: "decimal", size: 8, "aria-label": `${label} of panel ${this.letter}` });
      node.addEventListener("change", () => {
        const epsilon = read(parseFloat(node.value.replace(",", ".")), node.value.includes("%"));
        if (epsilon > 0 && Number.isFinite(epsilon)) change({ epsilon: Number(epsilon.toPrecision(6)) });
        else this.move();
      });
      return node;
    };
    this.epsilonBox = typed("Epsilon", (value) => value);
    this.shareBox = typed("Share of the prior", (value) => study.epsilonAt(this.choice.site, value / 100));
    this.reset = make("button", { title: "Back to the bandwidth for which these were drawn", onclick: () => change({ epsilon: null }) }, "reset");
    this.told = make("p", { class: "told" });
    this.table = make("table", { class: "rates" });
    this.samples = make("tbody");
    this.order = make("select", { "aria-label": "Order of samples", onchange: () => app.set({ sort: this.order.value }) });
    this.order.append(...Object.entries(SORTS).map(([value, text]) => make("option", { value }, text)));
    this.word = make("span", { class: "word-told" });
    this.limits = make("p", { class: "note" });
    this.node = make("article", { class: "panel", "aria-label": `Panel ${this.letter}`, onpointerdown: () => app.activate(this.letter), onfocusin: () => app.activate(this.letter) },
      make("header", {},
        make("span", { class: "badge" }, this.letter), this.site, this.from,
        ...(study.nTargets === 1 ? [] : [make("button", { title: "Previous target prompt ([)", onclick: () => app.step(this.letter, -1) }, "‹"), this.target,
        make("button", { title: "Next target prompt (])", onclick: () => app.step(this.letter, 1) }, "›"),
        make("button", { title: "Draw a target prompt at random (d)", onclick: () => app.draw(this.letter) }, "draw")])),
      this.prompt, this.strip, this.slider,
      make("div", { class: "band" },
        make("label", {}, "bandwidth ε ", this.epsilonBox), make("label", {}, "share ", this.shareBox), this.reset),
      this.told,
      make("div", { class: "scroll" }, this.table),
      make("div", { class: "bar" }, this.order, this.word,
        make("button", { title: "These samples as a table", onclick: () => this.export() }, "Samples CSV")),
      make("div", { class: "scroll samples" }, make("table", {},
        make("thead", {}, make("tr", {}, make("th", { class: "n" }, "distance"), make("th", { class: "n" }, "weight"), make("th", {}, "sample"))),
        this.samples)),
      this.limits);
    this.samples.addEventListener("pointerover", (event) => app.hover(event.target.dataset.word ?? null));
    this.samples.addEventListener("pointerleave", () => app.hover(null));
    this.samples.addEventListener("click", (event) => event.target.dataset.word && app.lock(event.target.dataset.word));
  }

  // --------------------------------------------------------------------------------------------------------- bandwidth
  /** Epsilon at a place of the slider; near a bandwidth of the tables it is that one. */
  slid(place) {
    const [low, high] = this.study.range(this.choice.site), x = place / STEPS;
    for (const { epsilon } of this.study.points(this.choice.site))
      if (Math.abs(Math.log(epsilon / low) / Math.log(high / low) - x) < 0.006) return epsilon;
    return Number((low * (high / low) ** x).toPrecision(6));
  }

  place(epsilon) {
    const [low, high] = this.study.range(this.choice.site);
    return Math.min(Math.max(Math.log(epsilon / low) / Math.log(high / low), 0), 1);
  }

  nudge(direction) {
    const place = Math.min(Math.max(this.place(this.epsilon) * STEPS + direction * STEPS / 50, 0), STEPS);
    this.app.choose(this.letter, { epsilon: this.slid(place) });
  }

  // ------------------------------------------------------------------------------------------------------------- draw
  /** Everything anew, for another site, source or target. */
  render() {
    const { study, choice } = this;
    this.site.value = choice.site;
    this.from.value = choice.source;
    this.target.value = choice.target;
    for (const [o, option] of [...this.from.options].entries()) option.disabled = !study.reads(o, choice.site);
    this.order.value = this.app.state.sort;
    this.prompt.replaceChildren(...pieces(study.targetText(choice.target), study.unit).map((piece) => this.token(piece, false)));
    this.list();
    this.move();
  }

  /** The samples, equal ones in one row. */
  list() {
    const { study, choice } = this, { text, distance } = study.arrays;
    const cell = study.cell(choice.source, choice.site, choice.target);
    const rows = new Map();
    for (let i = study.start[cell]; i < study.start[cell + 1]; i++) {
      const row = rows.get(text[i]) ?? { text: text[i], distance: distance[i], members: [], first: i };
      row.members.push(i - study.start[cell]);
      rows.set(text[i], row);
    }
    const target = pieces(study.targetText(choice.target), study.unit);
    this.rows = [...rows.values()].map((row) => {
      const own = pieces(study.texts[row.text], study.unit), same = agreeing(own, target);
      const count = row.members.length > 1 ? make("span", { class: "count", title: `${row.members.length} equal samples` }, ` ×${row.members.length}`) : null;
      const weight = make("td", { class: "n weight" });
      const node = make("tr", {}, make("td", { class: "n" }, Number.isNaN(row.distance) ? "" : row.distance.toPrecision(3)), weight,
        make("td", { class: "text" }, own.map((piece, k) => this.token(piece, same[k])), count));
      return { ...row, node, weight };
    });
  }

  /** One piece of a text; the rarer it is in all prompts, the stronger its colour where it agrees. */
  token(piece, agrees) {
    if (/^\s+$/.test(piece)) return piece;
    const node = make("span", { class: agrees ? "w same" : "w", "data-word": piece }, piece);
    if (agrees && /[\p{L}\p{N}]/u.test(piece)) node.style.backgroundColor = `rgba(0, 114, 178, ${(0.05 + 0.4 * (1 - this.app.commonness(piece))).toFixed(2)})`;
    return node;
  }

  /** What depends on the bandwidth. */
  move() {
    const { study, choice, epsilon } = this, { site, source, target } = choice;
    const byQ = this.app.state.byQ;
    const here = (this.here = study.weigh(source, site, target, epsilon, byQ));
    this.drawStrip(); // asks how wide it is, which is known as long as nothing else has changed
    const all = study.overTargets(source, site, epsilon, byQ);
    const { share, beyond } = study.shareAt(site, epsilon);
    this.slider.value = Math.round(this.place(epsilon) * STEPS);
    this.slider.setAttribute("aria-valuetext", `epsilon ${epsilonText(epsilon)}, ${percent(share)} of the prior`);
    this.epsilonBox.value = epsilonText(epsilon);
    this.shareBox.value = Number.isFinite(share) ? `${["<", "", ">"][beyond + 1]}${percent(share)}` : "–";
    this.reset.disabled = choice.epsilon === null;
    this.tell(here, all);
    this.rateTable(here, all);
    for (const row of this.rows) {
      row.sum = row.members.reduce((sum, i) => sum + here.weight[i], 0);
      const state = Number.isNaN(row.distance) ? "none" : row.sum > 0 ? "in" : "out";
      row.node.className = state;
      row.weight.textContent = state === "in" ? `${(100 * row.sum / here.sum).toFixed(1)}%` : state === "out" ? "too far" : "no prompt";
    }
    const last = (row) => (Number.isNaN(row.distance) ? Infinity : row.distance);
    const orders = { distance: (a, b) => last(a) - last(b) || a.first - b.first, weight: (a, b) => b.sum - a.sum || last(a) - last(b) || a.first - b.first, draw: (a, b) => a.first - b.first };
    const sorted = [...this.rows].sort(orders[this.app.state.sort]);
    if (sorted.some((row, k) => row.node !== this.samples.children[k]) || sorted.length !== this.samples.children.length)
      this.samples.replaceChildren(...sorted.map((row) => row.node));
    this.limits.textContent = this.limit();
  }

  /** Refusal and how many samples speak, of this target and of all. */
  tell(here, all) {
    const { study, choice } = this, cache = study.isCache(choice.source);
    const part = (name, value, text) => make("b", { "data-name": name, "data-value": value }, text);
    const refusal = cache ? null : study.refused(this.source.name, this.source.decoding, this.source.bandwidth, choice.site);
    const size = study.arrays.total[study.cell(choice.source, choice.site, choice.target)];
    const share = (name, count) => part(name, count / here.n, percent(count / here.n));
    const lines = [cache
      ? ["in the ball ", part("accepted", here.accepted, here.accepted), ` of the ${size} nearest cached prompts`]
      : ["refused ", share("refused", here.parse + here.far), ": ", share("parse", here.parse), " no prompt, ", share("far", here.far), " too far; left ",
        part("accepted", here.accepted, here.accepted), ` of ${here.n}`]];
    lines[0].push(", effective ", part("ess", here.ess, shown(here.ess, 1)));
    if (!cache && study.nTargets > 1) lines.push([`all ${all.targets}: refused `, part("all-refused", all.parse + all.far, percent(all.parse + all.far)),
      make("span", { class: "dim", title: `refusal.csv, ${bandwidthText(this.source.bandwidth)}` }, refusal ? ` (table ${percent(refusal.refusal_rate)} [${percent(refusal.ci_low)}, ${percent(refusal.ci_high)}])` : ""),
      ", effective ", part("all-ess", all.ess, shown(all.ess, 1)), make("span", { class: "dim" }, " (median)")]);
    this.told.replaceChildren(...lines.map((line) => make("div", {}, line)));
  }

  /** Rates of all features: of this target, and over all targets beside the table's. */
  rateTable(here, all) {
    const { study, choice, app } = this, { site, source, target } = choice, { name, bandwidth, decoding } = this.source;
    const cache = study.isCache(source), estimator = cache ? "cache" : app.state.byQ ? "reweighted" : "generated";
    const number = (column, value, title, kind = "n") =>
      make("td", { class: kind, title, "data-name": column, "data-value": Number.isFinite(value) ? value : "" }, shown(value, 2));
    const rows = study.features.map((feature, f) => {
      const own = study.match(f, target, here), top = study.top(f, here);
      const table = study.rate(estimator, cache ? "" : name, decoding, bandwidth, f, site);
      const exact = study.rate("exact", "", "", bandwidth, f, site);
      const effect = study.effect(f, site);
      const interval = (row) => (row ? `${tabledText(row.fcr)} [${tabledText(row.ci_low)}, ${tabledText(row.ci_high)}]` : null);
      const label = study.nameOf(f, study.label(f, study.arrays.target[target]));
      const most = Number.isFinite(top.share) && study.nameOf(f, top.code) !== label ? study.nameOf(f, top.code) : "";
      return make("tr", { class: f === app.state.feature ? "chosen" : null, "data-feature": feature.name, onclick: () => app.set({ feature: f }) },
        make("th", { scope: "row", class: "label", title: feature.name }, feature.name), make("td", { class: "label", title: label }, label),
        number("here", own, null, "n live"), number("here-exact", study.exactOf(f, site, target), `at ${bandwidthText(study.headline)}`),
        make("td", { class: "label other", title: most ? `${most}: ${shown(top.share)}` : null }, most),
        number("all", all.rates[f], null, "n live edge"), number("table", table?.fcr, interval(table)), number("exact", exact?.fcr, interval(exact)),
        number("chance", feature.chance, null, "n dim"),
        study.effects.length ? number("effect", effect?.effect, effect ? `logits, [${tabledText(effect.effect_low)}, ${tabledText(effect.effect_high)}]` : null) : null);
    });
    const head = (text, title, kind = "n") => make("th", { class: kind, title, scope: "col" }, text);
    const widths = ["name", "label", "n", "n", "label", "n", "n", "n", "n wide", ...(study.effects.length ? ["n wide"] : [])];
    this.table.replaceChildren(
      make("colgroup", {}, widths.map((kind) => make("col", { class: kind }))),
      make("thead", {},
        make("tr", { class: "groups" }, make("th"), make("th", { colspan: 4 }, "this target"), make("th", { colspan: study.effects.length ? 5 : 4, class: "edge" }, study.nTargets > 1 ? `all ${study.nTargets} targets` : "tables")),
        make("tr", {}, make("th", { scope: "col", class: "label" }, "feature"), head("label", "the target's own", "label"),
          head("live", "share of the stored samples' weight that has this label; follows the slider", "n live"),
          head("exact", `exact rate of this target at ${bandwidthText(study.headline)}`), head("most", "the label with most weight, if it is another one", "label"),
          head("live", "mean over targets of the same; follows the slider", "n live edge"),
          head("table", `fcr.csv: ${estimator}, ${bandwidthText(bandwidth || study.headline)}; all samples`),
          head("exact", `fcr.csv: exact, ${bandwidthText(bandwidth || study.headline)}`), head("chance", "two random prompts agree"),
          study.effects.length ? head("effect", "causes.csv: change of the logit difference when this site is patched") : null)),
      make("tbody", {}, rows));
  }

  /** Samples by distance: a tick each, coloured by the chosen feature, above the slider. */
  drawStrip() {
    const { study, choice, here, epsilon } = this, { distance, text, label } = study.arrays;
    const width = this.strip.clientWidth || 400, inset = 8, span = width - 2 * inset;
    const x = (value) => inset + this.place(value) * span;
    const own = study.label(this.app.state.feature, study.arrays.target[choice.target]), base = this.app.state.feature * study.texts.length;
    const parts = [make("svg:rect", { x: inset, y: 14, width: x(epsilon) - inset, height: 16, class: "ball" })];
    study.points(choice.site).forEach(({ name, epsilon: at }, k, all) => {
      const [kind, value] = name.split(" ");
      const told = kind === "share" ? `${Number((100 * value).toPrecision(3))}%` : `${study.headline.startsWith("share") ? "ε " : ""}${value}`;
      parts.push(make("svg:line", { x1: x(at), x2: x(at), y1: 11, y2: 34, class: "tick" }));
      if (!k || x(at) - x(all[k - 1].epsilon) > 26) parts.push(make("svg:text", { x: x(at), y: 9, "text-anchor": "middle" }, told));
    });
    const drawn = { in: "", other: "", out: "" };
    for (let i = 0; i < here.n; i++) {
      const d = distance[here.from + i];
      if (Number.isNaN(d)) continue;
      const kind = !here.weight[i] ? "out" : label[base + text[here.from + i]] === own ? "in" : "other";
      drawn[kind] += `M${x(Math.max(d, 1e-12)).toFixed(1)} ${kind === "in" ? "15v7" : kind === "other" ? "22v7" : "17v10"}`;
    }
    for (const [kind, path] of Object.entries(drawn)) if (path) parts.push(make("svg:path", { d: path, class: kind }));
    this.strip.setAttribute("viewBox", `0 0 ${width} 34`);
    this.strip.replaceChildren(...parts);
  }

  /** What the slider's numbers rest on here. */
  limit() {
    const { study, choice } = this, cell = study.cell(choice.source, choice.site, choice.target);
    const stored = study.arrays.stored[cell], total = study.arrays.total[cell], told = [];
    if (study.isCache(choice.source)) {
      const reach = study.reach(choice.source, choice.site, choice.target);
      if (this.epsilon > reach) told.push(`Beyond ε = ${epsilonText(reach)} the ball holds more cached prompts than are stored here.`);
    } else if (total > stored) told.push(`The first ${stored} of ${total} samples are stored.`);
    if (!total) told.push("No samples of this source here.");
    if (this.source.kind === "generated" && this.own > 0) told.push(`Drawn for ${bandwidthText(this.source.bandwidth)}${this.source.bandwidth.startsWith("share") ? `, here ε = ${epsilonText(this.own)}` : ""}.`);
    return told.join(" ");
  }

  /** The samples as a file. */
  export() {
    const { study, choice, here } = this, { text, distance, log_q } = study.arrays;
    const columns = ["source", "site", "target_id", "draw", "text", "distance", "epsilon", "weight", "state", ...(study.isCache(choice.source) ? [] : ["logq"]), ...study.features.map((f) => `feature_${f.name}`)];
    const rows = Array.from({ length: here.n }, (_, i) => {
      const at = here.from + i, d = distance[at];
      const state = Number.isNaN(d) ? "no prompt" : here.weight[i] > 0 ? "accepted" : "too far";
      const labels = study.features.map((_, f) => { const code = study.label(f, text[at]); return code < 0 ? "" : study.features[f].values[code]; });
      const q = study.isCache(choice.source) ? [] : [Number((log_q[at] * study.step).toFixed(3))];
      return [this.source.name, study.sites[choice.site].label, choice.target, i, study.texts[text[at]], d, this.epsilon, here.sum > 0 ? here.weight[i] / here.sum : 0, state, ...q, ...labels];
    });
    save(`${study.sites[choice.site].label}_${this.source.name}_target${choice.target}.csv`, "text/csv", csv(columns, rows));
  }
}

/** A number of a table with all digits that it has there. */
function tabledText(value) { return String(value); }
