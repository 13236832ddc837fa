// The workers of a job, and where the time of its steps goes.

import { h, say } from "./dom.js";
import { duration, number, percent, plural, whole } from "./format.js";

const HEADINGS = ["Worker", "Node", "Share of a step", "Samples per second", "Busy", "Lag", "Lost on this node"];

/** A section that is hidden as long as the job has no workers. */
export function workerTable() {
  const rows = h("tbody");
  const words = h("p", { class: "minor" });
  const more = h("p", { class: "minor", hidden: true });
  const table = h(
    "table",
    { class: "stacked" },
    h("caption", { class: "hidden" }, "Workers of the job"),
    h("thead", {}, h("tr", {}, ...HEADINGS.map((word) => h("th", { scope: "col" }, word)))),
    rows,
  );
  const element = h("section", { hidden: true }, h("h2", {}, "Workers"), words, h("div", { class: "card table-card" }, table), more);
  return {
    element,
    show(workers) {
      element.hidden = !workers || !workers.total;
      if (element.hidden) return;
      say(words, whereTimeGoes(workers));
      rows.replaceChildren(...workers.list.map(row));
      const left = workers.total - workers.list.length;
      more.hidden = left <= 0;
      say(more, left > 0 ? `and ${plural(left, "more worker")}` : "");
    },
  };
}

/** What a step's time is spent on, from the fractions of time in which workers had tasks. */
function whereTimeGoes({ seconds_per_step: seconds, list }) {
  const prepared = list.filter((worker) => worker.prepared);
  if (!seconds || !prepared.length) return "";
  const busy = prepared.reduce((sum, worker) => sum + worker.busy, 0) / prepared.length;
  const step = seconds < 1 ? `${number(seconds * 1000)} ms` : duration(seconds);
  return `A step takes ${step}. Of their time, workers compute or send ${percent(busy)}, and wait ${percent(1 - busy)}: for each other, for the server, or for an evaluation.`;
}

function row(worker) {
  const lag = worker.tasks ? `${whole(worker.task_seconds)} s` : "idle";
  const silent = worker.silent_seconds > 5 ? `, silent for ${duration(worker.silent_seconds)}` : "";
  const cells = [
    worker.node || "–",
    worker.prepared ? percent(worker.share) : "preparing",
    worker.samples_per_second ? whole(worker.samples_per_second) : "–",
    meter(worker),
    lag + silent,
    whole(worker.lost_on_node),
  ];
  return h("tr", {}, h("th", { scope: "row" }, worker.name), ...cells.map((cell, index) => h("td", { "data-label": HEADINGS[index + 1] }, cell)));
}

function meter(worker) {
  return h("div", { class: "meter" }, h("progress", { max: 1, value: worker.busy, "aria-label": `${worker.name} was busy` }), h("span", {}, percent(worker.busy)));
}
