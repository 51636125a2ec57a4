// The page's behaviour: filters, charts, tables, theme. Records are data, never markup:
// text reaches the document through textContent only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

  // ---- rows ---------------------------------------------------------------------------

  data.scopes.forEach((scope) => {
    const keys = Object.keys(scope.rows);
    scope.rows = scope.rows.panel.map((_, i) =>
      Object.fromEntries(keys.map((key) => [key, scope.rows[key][i]])));
    const key = (row) => `${row.panel}|${data.looks[row.impl].name}|${row.x}`;
    scope.rowAt = new Map(scope.rows.map((row) => [key(row), row]));
  });

  // ---- state: what the reader chose, kept in the address --------------------------------

  const chips = $$(".chip");
  const fieldOf = (chip) => chip.closest("[data-filter]").dataset.filter;
  const FIELDS = [...new Set(chips.map(fieldOf))];
  const state = { scope: 0, chosen: Object.fromEntries(FIELDS.map((field) => [field, new Set()])) };

  function readHash() {
    const told = new URLSearchParams(location.hash.slice(1));
    FIELDS.forEach((field) => {
      const known = new Set(chips.filter((c) => fieldOf(c) === field).map((c) => c.value));
      state.chosen[field] = new Set(told.getAll(field).filter((value) => known.has(value)));
    });
    const names = $$("#scope option").map((option) => option.textContent);
    state.scope = Math.max(0, names.indexOf(told.get("suite")));
  }

  function writeHash() {
    const told = new URLSearchParams();
    const option = $$("#scope option")[state.scope];
    if (option && state.scope > 0) told.set("suite", option.textContent);
    FIELDS.forEach((field) => state.chosen[field].forEach((value) => told.append(field, value)));
    const hash = told.toString();
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  }

  // A field that neither tells panels apart nor is the axis has one value: nothing to choose.
  function valueOf(field, scope, { panel, x, impl }) {
    if (field === "impl") return impl;
    if (field === scope.axis.field) return scope.axis.ordinal ? x : undefined;
    return panel === undefined ? undefined : scope.panels[panel].facets[field];
  }
  function isChosen(scope, what) {
    return FIELDS.every((field) => {
      const value = valueOf(field, scope, what);
      const chosen = state.chosen[field];
      return value === undefined || !chosen.size || chosen.has(String(value));
    });
  }
  const isShown = (scope) => (row) => isChosen(scope, { ...row, impl: data.looks[row.impl].name });

  // ---- applying the filters ---------------------------------------------------------------

  const MANY = 24; // panels, cards or rows that are shown before the reader asks for all

  // Only what the shown suite has can be chosen, and only where there is a choice.
  function showChips() {
    const scope = data.scopes[state.scope];
    FIELDS.forEach((field) => {
      const has = new Set(scope.rows.map((row) =>
        String(valueOf(field, scope, { ...row, impl: data.looks[row.impl].name }))));
      const own = chips.filter((chip) => fieldOf(chip) === field);
      const chosen = state.chosen[field];
      chosen.forEach((value) => has.has(value) || chosen.delete(value));
      own.forEach((chip) => {
        chip.hidden = !has.has(chip.value);
        chip.setAttribute("aria-pressed", String(chosen.has(chip.value)));
      });
      own[0].parentElement.hidden = field !== "impl" && has.size < 2;
      own[0].parentElement.classList.toggle("chosen", chosen.size > 0);
    });
    document.getElementById("reset").hidden = FIELDS.every((field) => !state.chosen[field].size);
  }

  function apply() {
    showChips();
    const select = document.getElementById("scope");
    if (select) select.value = String(state.scope);
    $$("[data-scope]").forEach((block) => {
      block.hidden = Number(block.dataset.scope) !== state.scope;
      if (!block.hidden) hideUnchosen(block);
    });
    showViews();
    $$("details.data[open][data-table]").filter(isVisible).forEach(drawTable);
    redrawCharts();
  }

  // A view that is of another kind than the shown suite has nothing to say.
  function showViews() {
    $$(".view").forEach((view) => {
      const blocks = $$("[data-scope]", view);
      view.hidden = blocks.length > 0 && blocks.every((block) => block.hidden);
      const link = document.querySelector(`[data-jump][href="#${view.id}"]`);
      if (link) link.parentElement.hidden = view.hidden;
    });
  }

  function hideUnchosen(block) {
    const scope = scopeOf(block);
    $$("[data-panel], [data-impl], [data-x]", block).forEach((element) => {
      const { panel, impl, x } = element.dataset;
      element.hidden = !isChosen(scope, { panel, impl, x });
    });
    $$(".failures > details", block).forEach((group) => {
      group.hidden ||= !group.querySelector("li:not([hidden])");
    });
    $$(".card", block).forEach(drawCard);
    $$(".winners td[data-x]", block).forEach(drawWinners);
    $$(".fold", block).forEach(fold);
    const parts = $$("[data-panel]", block);
    const nothing = block.querySelector(".nothing");
    if (nothing) nothing.hidden = !parts.length || parts.some((part) => !part.hidden);
  }

  // A sweep over many things has many panels: show some, and a button for the others.
  function fold(box) {
    const shown = [...box.children].filter((child) => !child.hidden);
    const isOpen = "unfolded" in box.dataset;
    [...box.children].forEach((child) => child.classList.remove("folded"));
    shown.slice(isOpen ? shown.length : MANY).forEach((child) => child.classList.add("folded"));
    const outer = box.closest(".scroll") ?? box;
    let more = outer.nextElementSibling;
    if (!more?.classList.contains("more")) {
      more = make("button", "", "more");
      more.type = "button";
      more.addEventListener("click", () => {
        box.dataset.unfolded = "";
        fold(box);
        redrawCharts();
      });
      outer.after(more);
    }
    more.hidden = isOpen || shown.length <= MANY;
    more.textContent = `Show all ${shown.length}`;
  }

  const isVisible = (element) => !element.closest("[hidden], .folded");

  // ---- verdicts: the same rule as attnbench.report.verdicts ----------------------------------

  function ranking(scope, panel, x) {
    return scope.rows
      .filter((r) => r.panel === panel && String(r.x) === x && r.latency)
      .filter(isShown(scope))
      .filter((r, _, all) => !r.approximate || all.every((other) => other.approximate))
      .sort((a, b) => a.latency[0] - b.latency[0] || a.impl - b.impl);
  }
  const leaders = (ranked) => ranked.filter((r) => r.latency[1] <= ranked[0].latency[2]);

  function named(index) {
    const look = data.looks[index];
    const span = make("span", "", "name");
    const chip = chips.find((c) => c.value === look.name && fieldOf(c) === "impl");
    span.append(chip.querySelector("svg").cloneNode(true), chip.querySelector("span").cloneNode(true));
    return span;
  }

  function drawCard(card) {
    const scope = scopeOf(card);
    const panel = Number(card.dataset.panel);
    // The largest problem that somebody of the chosen solved, as in verdicts.headline().
    // Where the axis is a list, each of its values has a card of its own.
    const sizes = scope.axis.ordinal
      ? [card.dataset.x]
      : [...new Set(scope.rows.filter((r) => r.panel === panel).map((r) => String(r.x)))];
    const x = sizes.reverse().find((size) => ranking(scope, panel, size).length) ?? sizes[0];
    const ranked = ranking(scope, panel, x);
    const winner = card.querySelector(".winner");
    const figure = card.querySelector(".figure");
    winner.replaceChildren();
    figure.replaceChildren();
    const first = leaders(ranked);
    winner.append(...first.map((row) => named(row.impl)));
    card.querySelector(".tie").hidden = first.length < 2;
    if (ranked.length) {
      const best = ranked[0];
      const speedup = best.speedup_text && `${best.speedup_text} ${scope.baseline}`;
      [best.time_text, best.rate_text, speedup].filter(Boolean).forEach((text, i) => {
        if (i) figure.append(document.createElement("br"));
        figure.append(text);
      });
    } else {
      winner.append("nobody");
      figure.append("no implementation has a verified time");
    }
    const label = scope.axis.ordinal ? "" : scope.axis.label + " ";
    card.querySelector(".where").textContent = label + x;
    const next = ranked.find((row) => !first.includes(row));
    card.querySelector(".next").replaceChildren(
      ...(next ? ["next: ", named(next.impl), `, ${factor(next.latency[0] / ranked[0].latency[0])} the time`] : []));
  }

  const factor = (value) => `${value < 1000 ? value.toPrecision(3) : Math.round(value)}×`;

  function drawWinners(cell) {
    const panel = Number(cell.parentElement.dataset.panel);
    const found = leaders(ranking(scopeOf(cell), panel, cell.dataset.x));
    cell.replaceChildren(...(found.length ? found.map((r) => named(r.impl)) : [make("span", "–", "nobody")]));
  }

  // ---- charts -----------------------------------------------------------------------------------

  const drawn = new Map(); // chart element → what was drawn into it last
  const seen = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
    { rootMargin: "400px" },
  );

  // What is in view is drawn at once, the rest one by one when there is nothing else to do.
  let round = 0;
  function redrawCharts() {
    const waiting = [];
    $$(".chart").forEach((element) => {
      seen.unobserve(element);
      drawn.get(element)?.finalize();
      drawn.delete(element);
      if (!isVisible(element)) return element.replaceChildren();
      seen.observe(element);
      return waiting.push(element);
    });
    const mine = ++round;
    const next = () => {
      if (mine !== round || !waiting.length) return;
      draw(waiting.shift());
      setTimeout(next, 10);
    };
    setTimeout(next, 200);
  }

  function draw(element) {
    if (drawn.has(element)) return undefined;
    const slot = { finalize() {} };
    drawn.set(element, slot);
    seen.unobserve(element);
    const figure = element.closest("figure");
    const scope = scopeOf(figure);
    const chart = scope.charts[element.dataset.chart ?? figure.dataset.chart];
    const panel = Number(figure.dataset.panel);
    const own = scope.rows.filter((row) => row.panel === panel).filter(isShown(scope));
    const marks = {
      error: errorMarks, pareto: paretoMarks, lines: lineMarks, stack: stackMarks, curve: curveMarks,
    };
    const rows = marks[chart.kind](chart, own);
    const isEmpty = !rows.some((row) => !row.failed);
    element.classList.toggle("empty", isEmpty);
    if (isEmpty) {
      element.textContent = chart.measure === "gap" && own.some((row) => row.loss)
        ? "No curve is apart from the reference's." : "Nothing was measured here.";
      return undefined;
    }
    const title = figure.querySelector("figcaption").textContent;
    const heading = figure.closest("section").querySelector("h2").textContent;
    element.setAttribute("aria-label", `${heading}: ${title}`);
    const height = chart.spec.height ?? (chart.row
      ? chart.row * new Set(rows.map((row) => row.impl)).size
      : heightOf(rows, chart.kind === "error" ? "tensor" : "x"));
    const spec = { ...chart.spec, height, datasets: { rows }, description: `${heading}: ${title}` };
    return vegaEmbed(element, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
      hover: false, logLevel: 1, config: theme(), tooltip: showTip,
    }).then((result) => {
      if (drawn.get(element) === slot) slot.finalize = () => result.finalize();
      else result.finalize(); // the reader was faster
    });
  }

  const FAILED = new Set(["incorrect", "oom", "timeout", "crash", "error"]);

  function looked(row) {
    const look = data.looks[row.impl];
    const color = look.color === "ink" ? colorOf("--ink") : look.color;
    return { impl: look.name, place: row.impl, color, shape: look.shape, dash: look.dash, x: row.x, row };
  }

  function lineMarks(chart, rows) {
    return rows.flatMap((row) => {
      const value = row[chart.measure];
      if (value) {
        const [y, lo, hi] = value.map((v) => v / chart.size);
        return [{ ...looked(row), y, lo, hi, failed: false }];
      }
      return FAILED.has(row.status) ? [{ ...looked(row), failed: true }] : [];
    });
  }

  function paretoMarks(chart, rows) {
    const shown = rows.filter((row) => row.latency && row.distance);
    const memory = (row) => row.memory?.[0] ?? 0;
    const most = Math.max(1, ...shown.map(memory));
    return shown.map((row) => ({
      ...looked(row), x: row.latency[0], y: row.distance, memory: memory(row) / most,
      method: row.method, front: Boolean(row.front), ring: 90 + 400 * (memory(row) / most),
    }));
  }

  // Bars of several parts, and over them what is drawn thin.
  function stackMarks(chart, rows) {
    return rows.filter((row) => row[chart.measure]).flatMap((row) =>
      row[chart.measure].map((value, place) => ({
        ...looked(row), part: chart.parts[place], part_place: place, y: value / chart.size,
        mark: over(row[`${chart.measure}_mark`], chart.size),
      })));
  }

  const over = (value, size) => (value === null ? null : value / size);

  // The baseline comes last: dashed, it lets those be seen that it lies upon.
  function curveMarks(chart, rows) {
    return rows.filter((row) => row[chart.measure]).reverse().flatMap((row) =>
      row[chart.measure].map(([x, y]) => ({ ...looked(row), x, y })));
  }

  const MEASURES = { rel_l2: 2, max_abs: 4, row_rel: 6 }; // places in a tensor's figures

  function errorMarks(chart, rows) {
    const at = MEASURES[chart.measure];
    const marks = rows.flatMap((row) =>
      Object.entries(row.errors ?? {}).map(([tensor, figures]) => ({
        ...looked(row), tensor, allowed: figures[at + 1], wrong: !figures[0],
        y: chart.share ? share(figures[at], figures[at + 1]) : figures[at],
      })),
    ).filter((mark) => mark.y !== null);
    // A log axis has no zero: exact results lie at the left edge, and their table says 0.
    const least = Math.min(...marks.map((m) => m.y).filter((y) => y > 0));
    return marks.map((m) => ({ ...m, y: m.y || (Number.isFinite(least) ? least / 10 : 1e-12) }));
  }

  const share = (error, allowed) => (error === null || !allowed ? null : error / allowed);

  // A band for each value of ``key``, with a row for each implementation in it.
  function heightOf(marks, key) {
    const distinct = (name) => new Set(marks.map((mark) => mark[name])).size;
    return distinct(key) * (distinct("impl") * 8 + 8);
  }

  function colorOf(variable) {
    const probe = document.createElement("i");
    probe.style.color = `var(${variable})`;
    document.body.append(probe);
    const color = getComputedStyle(probe).color;
    probe.remove();
    return color;
  }

  function theme() {
    const [ink, soft, line, grid, bad] =
      ["--ink", "--soft", "--line", "--grid", "--bad"].map(colorOf);
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: null, font, padding: { left: 0, right: 6, top: 6, bottom: 4 },
      view: { stroke: null },
      axis: {
        labelColor: soft, titleColor: soft, gridColor: grid, domainColor: line, tickColor: line,
        labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", tickSize: 4, labelPadding: 4,
      },
      axisX: { titlePadding: 5 },
      axisY: { domain: false, ticks: false, titleAnchor: "end", titleAngle: 0, titleAlign: "left", titleX: 0, titleY: -9 },
      style: { limit: { color: bad, opacity: 0.8 }, wrong: { color: bad, shape: "circle" }, front: { color: ink, shape: "circle" },
        joined: { color: soft, opacity: 0.5 }, over: { color: ink } },
      text: { color: ink },
    };
  }

  // ---- tooltip -----------------------------------------------------------------------------------

  const tip = document.getElementById("tip");

  function showTip(_, event, item, value) {
    const mark = value && item && item.datum;
    if (mark && mark.row) tellAbout(event, mark.row, mark.tensor);
    else tip.hidden = true;
  }

  // Cells of tables tell as much about their point as marks do.
  document.addEventListener("mouseover", (event) => {
    const cell = event.target.closest(".heat td, .pip[data-x]");
    if (!cell) {
      if (!event.target.closest(".chart")) tip.hidden = true;
      return;
    }
    const { panel } = cell.closest("[data-panel]").dataset;
    const { impl } = cell.closest("[data-impl]").dataset;
    const row = scopeOf(cell).rowAt.get(`${panel}|${impl}|${cell.dataset.x}`);
    if (row) tellAbout(event, row);
  });

  function tellAbout(event, row, tensor) {
    const scope = data.scopes[state.scope];
    const list = make("dl");
    const tell = (term, text) => text && list.append(make("dt", term), make("dd", text));
    tell(scope.axis.label, String(row.x));
    if (row.status !== "ok") tell("status", row.status);
    tell("time", row.time_text && row.time_text + (row.wide ? WIDER : ""));
    tell("host time", row.host_time_text);
    tell("rate", row.rate_text);
    tell("MFU", row.mfu_text);
    tell("batch", row.batch_text);
    tell("parts", row.step_text);
    tell("attention", row.attention_text);
    tell("last loss", row.loss_text);
    tell("parity", row.parity_text);
    tell("metrics", row.metrics_text);
    tell("distance", row.distance_text);
    tell("speed-up", row.speedup_text);
    tell("roofline", row.roofline_text);
    tell("energy", row.energy_text);
    tell("memory", row.memory_text);
    tell("of it", row.memory_parts_text);
    tell("memory note", row.memory_note_text);
    if (tensor) {
      const figures = row.errors[tensor];
      tell(`${tensor} relative L2`, limit(figures[2], figures[3]));
      tell(`${tensor} largest`, limit(figures[4], figures[5]));
      tell("verdict", scope.verdicts[figures[1]]);
    } else tell("error", row.error_text);
    tell("reason", row.reason);
    tell("chosen", row.choices);
    tip.replaceChildren(make("b", data.looks[row.impl].name), list);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const isLow = event.clientY + 14 + box.height > innerHeight;
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = isLow ? event.clientY - box.height - 10 : event.clientY + 14;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, y)}px`;
  }

  const WIDER = ", wider than asked for";

  const limit = (error, allowed) =>
    `${scientific(error)}${allowed === null ? "" : ` (allowed ${scientific(allowed)})`}`;
  const scientific = (value) =>
    value === null ? "not finite" : value === 0 ? "0" : value.toExponential(1);

  // ---- tables, made when they are opened ------------------------------------------------------------

  const COLUMNS = {
    rate: [["rate", "rate_text", (r) => r.rate?.[0]]],
    latency: [["time per call", (r) => r.time_text && r.time_text + (r.wide ? WIDER : ""),
      (r) => r.latency?.[0]]],
    memory: [["peak memory", "memory_text", (r) => r.memory?.[0]],
      ["of it", "memory_parts_text"], ["memory note", "memory_note_text"]],
    rel_l2: [["relative L2 error (allowed)", (r) => errorsText(r, "rel_l2")]],
    max_abs: [["largest absolute error (allowed)", (r) => errorsText(r, "max_abs")]],
    row_rel: [["relative L2 error of the worst row (allowed)", (r) => errorsText(r, "row_rel")]],
    pareto: [["time per call", "time_text", (r) => r.latency?.[0]],
      ["distance from the answer", "distance_text", (r) => r.distance],
      ["peak memory", "memory_text", (r) => r.memory?.[0]],
      ["nobody beats it", (r) => (r.front ? "yes" : ""), (r) => r.front]],
  };
  COLUMNS.all = [
    ...COLUMNS.latency, ["host time", "host_time_text"], ["timed by", "how_text"],
    ...COLUMNS.rate, ["distance from the answer", "distance_text"],
    ["speed-up", "speedup_text", (r) => r.rate?.[0]],
    ["MFU", "mfu_text"], ["batch", "batch_text"], ["parts of a step", "step_text"],
    ["attention's share", "attention_text"], ["last loss", "loss_text", (r) => r.loss?.at(-1)?.[1]],
    ["parity", "parity_text"], ["metrics", "metrics_text"],
    ["share of roofline", "roofline_text", (r) => r.roofline_text && parseFloat(r.roofline_text)],
    ["energy of a call", "energy_text"],
    ...COLUMNS.memory, ["worst error", "error_text"], ["reason", "reason"], ["chosen", "choices"],
    ["command", (r) => data.scopes[state.scope].command + r.command],
    ["id", "id"],
  ];
  const WIDE = new Set(["reason", "chosen", "command", "memory note", "timed by"]);
  // Left out where nobody has them.
  const RARE = new Set(["distance from the answer", "host time", "timed by", "chosen",
    "share of roofline", "energy of a call", "MFU", "batch", "parts of a step",
    "attention's share", "last loss", "parity", "metrics"]);

  function errorsText(row, measure) {
    const at = MEASURES[measure];
    const { verdicts } = data.scopes[state.scope];
    return Object.entries(row.errors ?? {})
      .map(([tensor, f]) => `${tensor} ${limit(f[at], f[at + 1])}: ${verdicts[f[1]]}`).join("; ");
  }

  function drawTable(details) {
    const scope = scopeOf(details);
    const chart = scope.charts[details.dataset.table];
    const read = (row, how) => (typeof how === "function" ? how(row) : row[how]) ?? "";
    const columns = [
      ["problem", (r) => scope.panels[r.panel].title, (r) => r.panel],
      [scope.axis.label, (r) => String(r.x), (r) => r.x],
      ["implementation", (r) => data.looks[r.impl].name, (r) => r.impl],
      ["status", "status"],
      ...COLUMNS[chart ? chart.measure : "all"],
    ].filter(([name, how]) =>
      (name !== "problem" || scope.panels.some((p) => p.title)) &&
      (!RARE.has(name) || scope.rows.some((r) => read(r, how))));
    const rows = scope.rows.filter(isShown(scope));
    const body = make("tbody");
    const fill = () =>
      body.replaceChildren(...rows.map((row) => {
        const line = make("tr");
        columns.forEach(([name, how]) =>
          line.append(make("td", read(row, how), WIDE.has(name) || name.includes("allowed") ? "wide" : "")));
        return line;
      }));
    const head = make("tr");
    columns.forEach(([name, how, key]) => {
      const cell = make("th");
      cell.scope = "col";
      const button = make("button", name);
      button.type = "button";
      button.addEventListener("click", () => {
        const isUp = cell.getAttribute("aria-sort") !== "ascending";
        $$("th", head).forEach((other) => other.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", isUp ? "ascending" : "descending");
        rows.sort((a, b) => (isUp ? 1 : -1) * order(read(a, key ?? how), read(b, key ?? how)));
        fill();
      });
      cell.append(button);
      head.append(cell);
    });
    fill();
    const table = make("table");
    const top = make("thead");
    top.append(head);
    table.append(top, body);
    details.querySelector(".scroll").replaceChildren(table);
  }

  function order(a, b) {
    if (a === "" || b === "") return Number(a === "") - Number(b === "");
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  }

  // ---- small helpers -----------------------------------------------------------------------------------

  function make(tag, text = "", className = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  const scopeOf = (element) => data.scopes[Number(element.closest("[data-scope]").dataset.scope)];

  // ---- events --------------------------------------------------------------------------------------------

  chips.forEach((chip) =>
    chip.addEventListener("click", () => {
      const chosen = state.chosen[fieldOf(chip)];
      if (!chosen.delete(chip.value)) chosen.add(chip.value);
      writeHash();
      apply();
    }));
  document.getElementById("reset")?.addEventListener("click", () => {
    FIELDS.forEach((field) => state.chosen[field].clear());
    writeHash();
    apply();
  });
  document.getElementById("scope")?.addEventListener("change", (event) => {
    state.scope = Number(event.target.value);
    writeHash();
    apply();
  });
  addEventListener("hashchange", () => {
    readHash();
    apply();
  });
  $$("[data-jump]").forEach((link) =>
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the address keeps the filters
      document.querySelector(link.getAttribute("href")).scrollIntoView();
    }));
  $$("details.data[data-table]").forEach((details) =>
    details.addEventListener("toggle", () => details.open && drawTable(details)));

  const THEMES = ["auto", "light", "dark"];
  const themeButton = document.getElementById("theme");
  themeButton.addEventListener("click", () => {
    const now = root.dataset.theme ?? "auto";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    themeButton.textContent = `Theme: ${next}`;
    redrawCharts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  const filters = document.getElementById("filters");
  if (filters && matchMedia("(max-width: 820px)").matches) filters.open = false;

  // Paper is white and does not scroll: everything shown is drawn, in light, with the legend.
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, isOpen: filters?.open };
    root.dataset.theme = "light";
    if (filters) filters.open = true;
    redrawCharts();
    $$(".chart").filter(isVisible).forEach(draw);
  });
  addEventListener("afterprint", () => {
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    if (filters) filters.open = before.isOpen;
    redrawCharts();
  });

  readHash();
  if (data.scopes.length) apply();
})();
