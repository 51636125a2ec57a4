// The page's behaviour: filters, charts, tables, theme. Records are data, never markup:
// text reaches the document through textContent only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const FIELDS = ["impl", "dtype", "mask", "direction"];

  // ---- rows ---------------------------------------------------------------------------

  data.scopes.forEach((scope) => {
    const keys = Object.keys(scope.rows);
    const length = keys.length ? scope.rows[keys[0]].length : 0;
    scope.rows = Array.from({ length }, (_, i) => {
      const row = Object.fromEntries(keys.map((key) => [key, scope.rows[key][i]]));
      const panel = scope.panels[row.panel];
      return { dtype: panel.dtype, mask: panel.mask, direction: panel.direction, ...row };
    });
  });

  // ---- state: what the reader chose, kept in the address --------------------------------

  const state = { scope: 0, impl: new Set(), dtype: new Set(), mask: new Set(), direction: new Set() };
  const chips = $$(".chip");
  const fieldOf = (chip) => chip.closest("[data-filter]").dataset.filter;

  function readHash() {
    const told = new URLSearchParams(location.hash.slice(1));
    FIELDS.forEach((field) => {
      const known = new Set(chips.filter((c) => fieldOf(c) === field).map((c) => c.value));
      state[field] = new Set(told.getAll(field).filter((value) => known.has(value)));
    });
    const names = $$("#scope option").map((option) => option.textContent);
    state.scope = Math.max(0, names.indexOf(told.get("suite")));
  }

  function writeHash() {
    const told = new URLSearchParams();
    const option = $$("#scope option")[state.scope];
    if (option && state.scope > 0) told.set("suite", option.textContent);
    FIELDS.forEach((field) => state[field].forEach((value) => told.append(field, value)));
    const hash = told.toString();
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  }

  const isChosen = (field, value) =>
    value === undefined || !state[field].size || state[field].has(String(value));
  const isShown = (row) =>
    isChosen("impl", data.looks[row.impl].name) &&
    ["dtype", "mask", "direction"].every((field) => isChosen(field, row[field]));

  // ---- applying the filters ---------------------------------------------------------------

  // Only what the shown suite has can be chosen, and only where there is a choice.
  function showChips() {
    const { rows } = data.scopes[state.scope];
    FIELDS.forEach((field) => {
      const has = new Set(rows.map((row) => (field === "impl" ? data.looks[row.impl].name : row[field])));
      state[field].forEach((value) => has.has(value) || state[field].delete(value));
      chips.filter((chip) => fieldOf(chip) === field).forEach((chip) => {
        chip.hidden = !has.has(chip.value);
        chip.parentElement.hidden = field !== "impl" && has.size < 2;
      });
    });
  }

  function apply() {
    showChips();
    chips.forEach((chip) => {
      const field = fieldOf(chip);
      chip.setAttribute("aria-pressed", String(state[field].has(chip.value)));
      chip.parentElement.classList.toggle("chosen", state[field].size > 0);
    });
    const isFiltered = FIELDS.some((field) => state[field].size > 0);
    const reset = document.getElementById("reset");
    if (reset) reset.hidden = !isFiltered;
    $$("[data-impl], [data-dtype], [data-mask], [data-direction]").forEach((element) => {
      const told = element.dataset;
      element.hidden = !FIELDS.every((field) => isChosen(field, told[field]));
    });
    const select = document.getElementById("scope");
    if (select) select.value = String(state.scope);
    $$("[data-scope]").forEach((element) => {
      element.hidden = Number(element.dataset.scope) !== state.scope;
    });
    $$(".failures > details").forEach((group) => {
      group.hidden ||= !group.querySelector("li:not([hidden])");
    });
    $$(".card").forEach(drawCard);
    $$(".winners td[data-x]").forEach(drawWinners);
    $$("main [data-scope]").forEach((block) => {
      const parts = $$("[data-panel]", block);
      block.querySelector(".nothing").hidden = !parts.length || parts.some((part) => !part.hidden);
    });
    $$("details.data[open][data-table]").forEach(drawTable);
    redrawCharts();
  }

  // ---- verdicts: the same rule as attnbench.report.verdicts ----------------------------------

  function ranking(scope, panel, x) {
    return scope.rows
      .filter((r) => r.panel === panel && String(r.x) === x && r.status === "ok" && r.latency && isShown(r))
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

  const drawn = new Map(); // chart element → finalize()
  const seen = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
    { rootMargin: "400px" },
  );

  function redrawCharts() {
    $$(".chart").forEach((element) => {
      seen.unobserve(element);
      drawn.get(element)?.();
      drawn.delete(element);
      if (element.closest("[hidden]")) element.replaceChildren();
      else seen.observe(element);
    });
  }

  function draw(element) {
    if (drawn.has(element)) return undefined;
    drawn.set(element, () => {});
    seen.unobserve(element);
    const figure = element.closest("figure");
    const scope = scopeOf(figure);
    const chart = scope.charts[figure.dataset.chart];
    const panel = Number(figure.dataset.panel);
    const own = scope.rows.filter((row) => row.panel === panel && isShown(row));
    const rows = chart.kind === "error" ? errorMarks(chart, own) : lineMarks(chart, own);
    const isEmpty = !rows.some((row) => !row.failed);
    element.classList.toggle("empty", isEmpty);
    if (isEmpty) {
      element.textContent = "Nothing was measured here.";
      return undefined;
    }
    const title = figure.querySelector("figcaption").textContent;
    const heading = figure.closest("section").querySelector("h2").textContent;
    element.setAttribute("aria-label", `${heading}: ${title}`);
    const height = chart.spec.height ?? heightOf(rows, chart.kind === "error" ? "tensor" : "x");
    const spec = { ...chart.spec, height, datasets: { rows }, description: `${heading}: ${title}` };
    return vegaEmbed(element, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
      hover: false, logLevel: 1, config: theme(), tooltip: showTip,
    }).then((result) => {
      drawn.set(element, () => result.finalize());
    });
  }

  const FAILED = new Set(["incorrect", "oom", "timeout", "crash", "error"]);

  function looked(row) {
    const look = data.looks[row.impl];
    const color = look.color === "ink" ? colorOf("--ink") : look.color;
    return { impl: look.name, color, shape: look.shape, dash: look.dash, x: row.x, row };
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

  function errorMarks(chart, rows) {
    const at = chart.measure === "max_abs" ? 2 : 0;
    const marks = rows.flatMap((row) =>
      Object.entries(row.errors ?? {}).map(([tensor, figures]) => ({
        ...looked(row), tensor, allowed: figures[at + 1], wrong: !figures[4],
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
      style: { limit: { color: bad, opacity: 0.8 }, wrong: { color: bad, shape: "circle" } },
      text: { color: ink },
    };
  }

  // ---- tooltip -----------------------------------------------------------------------------------

  const tip = document.getElementById("tip");

  function showTip(_, event, item, value) {
    const mark = item && item.datum;
    tip.hidden = !value || !mark || !mark.row;
    if (tip.hidden) return;
    const { row } = mark;
    const scope = data.scopes[state.scope];
    const list = make("dl");
    const tell = (term, text) => text && list.append(make("dt", term), make("dd", text));
    tell(scope.axis.label, String(row.x));
    if (row.status !== "ok") tell("status", row.status);
    tell("time", row.time_text);
    tell("rate", row.rate_text);
    tell("speed-up", row.speedup_text);
    tell("memory", row.memory_text);
    if (mark.tensor) {
      const figures = row.errors[mark.tensor];
      tell(`${mark.tensor} rel. L2`, limit(figures[0], figures[1]));
      tell(`${mark.tensor} max abs`, limit(figures[2], figures[3]));
    } else tell("error", row.error_text);
    tell("reason", row.reason);
    tip.replaceChildren(make("b", mark.impl), list);
    const box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = event.clientY + 14 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 14;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, y)}px`;
  }

  const limit = (error, allowed) =>
    `${scientific(error)}${allowed === null ? "" : ` (allowed ${scientific(allowed)})`}`;
  const scientific = (value) =>
    value === null ? "not finite" : value === 0 ? "0" : value.toExponential(1);

  // ---- tables, made when they are opened ------------------------------------------------------------

  const COLUMNS = {
    rate: [["rate", "rate_text", (r) => r.rate?.[0]]],
    latency: [["time per call", "time_text", (r) => r.latency?.[0]]],
    memory: [["peak memory", "memory_text", (r) => r.memory?.[0]]],
    rel_l2: [["error (allowed), relative L2", (r) => errorsText(r, 0)]],
    max_abs: [["error (allowed), max abs", (r) => errorsText(r, 2)]],
  };
  COLUMNS.all = [
    ...COLUMNS.latency, ...COLUMNS.rate, ["speed-up", "speedup_text", (r) => r.rate?.[0]],
    ...COLUMNS.memory, ["worst error", "error_text"], ["reason", "reason"], ["command", "command"],
    ["id", "id"],
  ];
  const WIDE = new Set(["reason", "command"]);

  function errorsText(row, at) {
    return Object.entries(row.errors ?? {})
      .map(([tensor, f]) => `${tensor} ${limit(f[at], f[at + 1])}`).join(", ");
  }

  function drawTable(details) {
    const scope = scopeOf(details);
    const chart = scope.charts[details.dataset.table];
    const columns = [
      ["problem", (r) => scope.panels[r.panel].title, (r) => r.panel],
      [scope.axis.label, (r) => String(r.x), (r) => r.x],
      ["implementation", (r) => data.looks[r.impl].name, (r) => r.impl],
      ["status", "status"],
      ...COLUMNS[chart ? chart.measure : "all"],
    ].filter(([name]) => name !== "problem" || scope.panels.some((p) => p.title));
    const read = (row, how) => (typeof how === "function" ? how(row) : row[how]) ?? "";
    const rows = scope.rows.filter(isShown);
    const body = make("tbody");
    const fill = () =>
      body.replaceChildren(...rows.map((row) => {
        const line = make("tr");
        columns.forEach(([name, how]) =>
          line.append(make("td", read(row, how), WIDE.has(name) ? "wide" : "")));
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
      const chosen = state[fieldOf(chip)];
      if (!chosen.delete(chip.value)) chosen.add(chip.value);
      writeHash();
      apply();
    }));
  document.getElementById("reset")?.addEventListener("click", () => {
    FIELDS.forEach((field) => state[field].clear());
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
  addEventListener("beforeprint", () =>
    $$(".chart").filter((element) => !element.closest("[hidden]")).forEach(draw));

  const filters = document.getElementById("filters");
  if (filters && matchMedia("(max-width: 820px)").matches) filters.open = false;
  readHash();
  if (data.scopes.length) apply();
})();
