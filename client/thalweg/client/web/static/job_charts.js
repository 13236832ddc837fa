// The charts of one job, or of two over each other. They come as soon as there is something to draw.

import { arrange, h } from "./dom.js";
import { chart } from "./chart.js";
import { curve } from "./curves.js";
import { number, percent, whole } from "./format.js";

const FIXED = [
  { title: "Loss", names: { loss: "training", epoch_loss: "epoch mean", validation_loss: "validation" }, decades: true },
  { title: "Learning rate", names: { learning_rate: "learning rate" } },
  { title: "Throughput", names: { samples_per_second: "samples per second" }, format: whole },
];
const METRIC = "validation.";

/** The charts of the curves of a job, by their names. */
export function jobCharts(curves) {
  return chartsOf([{ label: "", curves }]);
}

/** The charts of several jobs, each with a `label` and `curves`; those of one kind are drawn over each other. */
export function chartsOf(jobs) {
  const element = h("div", { class: "chart-grid" });
  const known = new Map();

  function wanted() {
    const metrics = new Set(jobs.flatMap((job) => Object.keys(job.curves)).filter((name) => name.startsWith(METRIC)));
    const charts = [...metrics].sort().map((name) => {
      const word = name.slice(METRIC.length).replaceAll("_", " ");
      const share = name.includes("accuracy");
      return { title: `Validation: ${word}`, names: { [name]: word }, format: share ? percent : number, fractions: share };
    });
    const [loss, ...others] = FIXED;
    return [loss, ...charts, ...others];
  }

  function make({ title, names, ...settings }) {
    // Of one job, each curve has a colour; of several, each job has one, and the mean of an epoch is left out.
    const several = jobs.length > 1;
    const kinds = Object.entries(names).filter(([key]) => !several || key !== "epoch_loss");
    const series = jobs.flatMap(({ label, curves }, number) =>
      kinds.map(([key, word], kind) => ({
        name: several ? [label, ...(kinds.length > 1 ? [word] : [])].join(", ") : word,
        colour: (several ? number : kind) + 1,
        dashed: several && kind > 0,
        get curve() {
          return curves[key] ?? curve();
        },
      })),
    );
    return chart({ title, series, ...settings });
  }

  return {
    element,
    draw() {
      const shown = wanted().map((each) => {
        if (!known.has(each.title)) known.set(each.title, make(each));
        return known.get(each.title);
      });
      arrange(element, shown.map((each) => each.element));
      for (const each of shown) each.draw();
    },
  };
}
