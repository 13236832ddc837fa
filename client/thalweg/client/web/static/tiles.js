// Numbers in a row, each with its name.

import { h, say } from "./dom.js";

export function tiles(names) {
  const values = new Map(names.map((name) => [name, h("dd")]));
  const boxes = new Map(names.map((name) => [name, h("div", { class: "tile" }, h("dt", {}, name), values.get(name))]));
  return {
    element: h("dl", { class: "tiles" }, ...boxes.values()),
    /** Shows values by name; those that are null are hidden. */
    show(found) {
      for (const [name, value] of Object.entries(found)) {
        boxes.get(name).hidden = value === null;
        say(values.get(name), value ?? "");
      }
    },
  };
}
