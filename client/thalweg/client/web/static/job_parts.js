// Parts of the page of a job: its log, its counters, the server's decisions, its job file.

import { h, say, toast } from "./dom.js";
import { bytes, date, whole } from "./format.js";
import { get } from "./net.js";

const MAX_ENTRIES = 200;

/** What happened, the newest first. */
export function log() {
  const list = h("ol", { class: "log" });
  const element = h("div", { class: "card scroll tall", tabindex: "0", role: "log", "aria-label": "Log of the job", "aria-live": "off" }, list);
  return {
    element,
    clear: () => list.replaceChildren(),
    add(entries) {
      for (const entry of entries) list.prepend(h("li", { class: entry.kind }, h("time", { datetime: new Date(entry.time * 1000).toISOString() }, date(entry.time)), h("span", {}, entry.text)));
      while (list.children.length > MAX_ENTRIES) list.lastChild.remove();
    },
  };
}

const COUNTERS = [
  ["Contributions applied", (job) => whole(job.contributions.applied)],
  ["Received twice", (job) => whole(job.contributions.duplicate)],
  ["Too late", (job) => whole(job.contributions.late)],
  ["Tasks given to a second worker", (job) => whole(job.contributions.reissued_tasks)],
  ["Workers lost", (job) => whole(job.contributions.lost_workers)],
  ["Checkpoints", (job) => whole(job.checkpoints.written) + (job.checkpoints.failed ? `, ${whole(job.checkpoints.failed)} failed` : "")],
  ["Last checkpoint", (job) => (job.checkpoints.written ? `step ${whole(job.checkpoints.step)}` : "–")],
  ["Gradients received", (job) => bytes(job.exchange.gradient_bytes)],
  ["Parameters sent", (job) => bytes(job.exchange.parameter_bytes)],
  ["Kinds of machines", (job) => whole(job.machine_kinds)],
];

/** What was counted. */
export function counters() {
  const values = COUNTERS.map(() => h("dd"));
  return {
    element: h("dl", { class: "card facts" }, ...COUNTERS.flatMap(([name], index) => [h("dt", {}, name), values[index]])),
    show(job) {
      COUNTERS.forEach(([, value], index) => say(values[index], value(job)));
    },
  };
}

function lazily(title, load) {
  let begun = false;
  const place = h("div", { "aria-live": "polite" });
  const details = h(
    "details",
    {
      class: "card fold",
      async toggle() {
        if (!details.open || begun) return;
        begun = true;
        try {
          place.replaceChildren(...(await load()));
        } catch (error) {
          begun = false;
          place.replaceChildren(h("p", { class: "problem" }, error.message));
        }
      },
    },
    h("summary", {}, h("h2", {}, title)),
    place,
  );
  return details;
}

/** The server's recent decisions, read when they are opened. */
export function story(id) {
  return lazily("Decisions of the server", async () => {
    const { entries } = await get(`/api/jobs/${encodeURIComponent(id)}/story`);
    if (!entries.length) return [h("p", { class: "minor" }, "The server has none: the job ended before it started, or too long ago.")];
    const rows = entries.map((entry) => h("li", {}, h("time", {}, date(entry.time)), h("span", { class: "source" }, entry.source), h("span", { class: "text" }, entry.text)));
    return [h("ol", { class: "story scroll tall", tabindex: "0" }, ...rows)];
  });
}

/** The job file, read when it is opened. */
export function jobFile(id) {
  return lazily("Job file", async () => {
    const { toml } = await get(`/api/jobs/${encodeURIComponent(id)}/file`);
    const copy = h("button", { type: "button", click: () => copied(toml) }, "Copy");
    return [copy, h("pre", { class: "scroll", tabindex: "0" }, toml)];
  });
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("The job file is copied.");
  } catch {
    toast("The browser does not allow that here.", "failed");
  }
}
