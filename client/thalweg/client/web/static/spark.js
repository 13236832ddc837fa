// A small curve without axes.

import { svg } from "./dom.js";

const WIDTH = 96;
const HEIGHT = 24;

export function sparkline(values) {
  const known = values.filter((value) => value !== null);
  const low = Math.min(...known);
  const high = Math.max(...known);
  const scale = high > low ? (HEIGHT - 4) / (high - low) : 0;
  const step = values.length > 1 ? (WIDTH - 4) / (values.length - 1) : 0;
  const path = values
    .map((value, index) => (value === null ? "" : `${(2 + index * step).toFixed(1)},${(HEIGHT - 2 - (value - low) * scale).toFixed(1)}`))
    .filter(Boolean)
    .join(" ");
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true", focusable: "false" },
    known.length > 1 ? svg("polyline", { points: path }) : null,
  );
}
