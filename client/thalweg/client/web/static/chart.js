// A chart of curves over steps, drawn as SVG: a pointer or the arrow keys show its values, and a table below it lists them.

import { h, say, svg } from "./dom.js";
import { number, whole } from "./format.js";
import { linear, logarithmic, spans } from "./scale.js";

const HEIGHT = 220;
const MARGIN = { top: 10, right: 12, bottom: 24 };
// Beside the axis there is room for its longest mark.
const [LETTER, LEAST] = [6.4, 44];
let charts = 0;

/**
 * A chart. `series` are objects with a `name`, a `colour` (1 to 6, of the style sheet) and a `curve` (see curves.js), which may
 * grow; `dashed` tells apart curves of one colour. `format` writes a value. `fractions` says that values go from 0 to 1, `decades` that a logarithmic axis may be better. Call `draw` after a change.
 */
export function chart({ title, series, format = number, fractions = false, decades = false }) {
  const id = `chart-${(charts += 1)}`;
  const picture = svg("svg", { class: "plot", role: "img", "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-read` });
  const reading = h("p", { class: "reading", id: `${id}-read`, "aria-live": "polite" });
  const legend = h("ul", { class: "legend" });
  const surface = h("div", { class: "surface", tabindex: "0", role: "group", "aria-label": `${title}: arrow keys read the values` }, picture);
  const rows = h("tbody");
  const head = h("tr");
  const details = h(
    "details",
    { class: "data", toggle: () => details.open && fill() },
    h("summary", {}, "Values as a table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}: values` }, h("table", {}, h("caption", { class: "hidden" }, title), h("thead", {}, head), rows)),
  );
  const element = h(
    "figure",
    { class: "chart card" },
    h("figcaption", {}, h("h3", { id: `${id}-title` }, title), legend),
    surface,
    reading,
    details,
  );
  let width = 0;
  let place = null;
  let steps = [];

  function shown() {
    return series.filter((each) => each.curve.steps.length);
  }

  function bounds(visible) {
    const values = [];
    for (const { curve } of visible) for (const part of [curve.values, curve.low, curve.high]) for (const value of part ?? []) if (value !== null) values.push(value);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    return values.length ? [low, high] : [0, 1];
  }

  function axes(visible) {
    steps = [...new Set(visible.flatMap((each) => each.curve.steps))].sort((a, b) => a - b);
    const [low, high] = bounds(visible);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.06 || 0.5;
    const y = fractions
      ? linear(Math.max(0, low - room), Math.min(1, high + room) || 1, 5)
      : decades && spans(low, high)
        ? logarithmic(low, high)
        : linear(low >= 0 && low < high * 0.6 ? 0 : low - room, high + room, 4);
    const x = linear(Math.min(0, steps[0] ?? 0), steps.at(-1) ?? 1, Math.max(2, Math.floor(width / 110)));
    const words = y.marks.map((mark) => (fractions ? format(mark) : y.text(mark)));
    const start = Math.max(LEAST, 14 + LETTER * Math.max(...words.map((word) => word.length)));
    const inside = { width: width - start - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
    return {
      x,
      y,
      words,
      start,
      left: (step) => start + x.at(step) * inside.width,
      top: (value) => MARGIN.top + (1 - y.at(value)) * inside.height,
      bottom: MARGIN.top + inside.height,
      right: start + inside.width,
    };
  }

  function grid(axis) {
    const lines = axis.y.marks.map((mark, index) => [
      svg("line", { class: "grid", x1: axis.start, x2: axis.right, y1: axis.top(mark), y2: axis.top(mark) }),
      svg("text", { class: "mark", x: axis.start - 8, y: axis.top(mark), "text-anchor": "end", dy: "0.32em" }, axis.words[index]),
    ]);
    const marks = axis.x.marks
      .filter(Number.isInteger)
      .map((mark) => svg("text", { class: "mark", x: axis.left(mark), y: axis.bottom + 17, "text-anchor": "middle" }, whole(mark)));
    return [...lines.flat(), svg("line", { class: "axis", x1: axis.start, x2: axis.right, y1: axis.bottom, y2: axis.bottom }), ...marks];
  }

  /** Runs of points that have values. */
  function runs(values) {
    const found = [[]];
    values.forEach((value, index) => (value === null ? found.push([]) : found.at(-1).push(index)));
    return found.filter((run) => run.length);
  }

  function lines({ curve, colour, dashed }, axis) {
    const at = (values) => (index) => `${axis.left(curve.steps[index]).toFixed(1)},${axis.top(values[index]).toFixed(1)}`;
    const bands = curve.low
      ? runs(curve.low).map((run) => svg("polygon", { class: `band colour-${colour}`, points: [...run.map(at(curve.high)), ...run.toReversed().map(at(curve.low))].join(" ") }))
      : [];
    const strokes = runs(curve.values).map((run) =>
      run.length > 1
        ? svg("polyline", { class: `line colour-${colour}${dashed ? " dashed" : ""}`, points: run.map(at(curve.values)).join(" ") })
        : svg("circle", { class: `dot colour-${colour}`, r: 3, cx: axis.left(curve.steps[run[0]]), cy: axis.top(curve.values[run[0]]) }),
    );
    return [...bands, ...strokes];
  }

  /** The index of the last point of a curve at or before a step; -1 if there is none. */
  function before(curve, step) {
    let [from, to] = [0, curve.steps.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (curve.steps[middle] <= step) from = middle + 1;
      else to = middle;
    }
    return from - 1;
  }

  function read(visible, axis) {
    if (place === null || !steps.length) {
      say(reading, "");
      return [];
    }
    const step = steps[Math.min(place, steps.length - 1)];
    const values = visible
      .map((each) => [each, each.curve.values[before(each.curve, step)]])
      .filter(([, value]) => value !== undefined && value !== null);
    say(reading, `step ${whole(step)}: ${values.map(([each, value]) => `${each.name} ${format(value)}`).join(", ")}`);
    return [
      svg("line", { class: "cross", x1: axis.left(step), x2: axis.left(step), y1: MARGIN.top, y2: axis.bottom }),
      ...values.map(([{ colour, curve }, value]) => svg("circle", { class: `dot colour-${colour}`, r: 4, cx: axis.left(curve.steps[before(curve, step)]), cy: axis.top(value) })),
    ];
  }

  function draw() {
    const visible = shown();
    legend.replaceChildren(...visible.map((each) => h("li", { class: `colour-${each.colour}${each.dashed ? " dashed" : ""}` }, each.name)));
    if (!width) return;
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (!visible.length) {
      picture.replaceChildren(svg("text", { class: "nothing", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no values yet"));
      return;
    }
    const axis = axes(visible);
    picture.replaceChildren(...grid(axis), ...visible.flatMap((each) => lines(each, axis)), ...read(visible, axis));
    if (details.open) fill();
  }

  function fill() {
    const visible = shown();
    head.replaceChildren(h("th", { scope: "col" }, "Step"), ...visible.map((each) => h("th", { scope: "col" }, each.name)));
    const values = visible.map(({ curve }) => new Map(curve.steps.map((step, index) => [step, curve.values[index]])));
    rows.replaceChildren(
      ...steps.map((step) => h("tr", {}, h("th", { scope: "row" }, whole(step)), ...values.map((each) => h("td", {}, each.has(step) ? format(each.get(step)) : "")))),
    );
  }

  function point(event) {
    const box = picture.getBoundingClientRect();
    const visible = shown();
    if (!visible.length || !box.width) return;
    const axis = axes(visible);
    const at = ((event.clientX - box.left) / box.width) * width;
    let [from, to] = [0, steps.length - 1];
    while (to - from > 1) {
      const middle = (from + to) >> 1;
      if (axis.left(steps[middle]) <= at) from = middle;
      else to = middle;
    }
    place = Math.abs(axis.left(steps[from]) - at) <= Math.abs(axis.left(steps[to]) - at) ? from : to;
    draw();
  }

  function key(event) {
    const last = steps.length - 1;
    const now = place ?? last;
    const jump = Math.max(1, Math.round(steps.length / 10));
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - jump, PageDown: now + jump, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) {
      if (event.key !== "Escape") return;
      place = null;
    } else {
      place = Math.max(0, Math.min(last, to));
      event.preventDefault();
    }
    draw();
  }

  function forget() {
    place = null;
    draw();
  }

  surface.addEventListener("pointermove", point);
  surface.addEventListener("pointerdown", point);
  surface.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && forget());
  surface.addEventListener("keydown", key);
  surface.addEventListener("blur", forget);
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now !== width) {
      width = now;
      draw();
    }
  }).observe(surface);
  return { element, draw };
}
