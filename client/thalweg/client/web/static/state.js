// The state of a job, as a badge, and its progress.

import { h, say } from "./dom.js";
import { duration, whole } from "./format.js";

const WORDS = { QUEUED: "Queued", RUNNING: "Running", SUCCEEDED: "Succeeded", FAILED: "Failed", CANCELLED: "Cancelled" };
export const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED"]);

export function stateWord(job) {
  return job.paused && !ENDED.has(job.state) ? "Paused" : (WORDS[job.state] ?? job.state);
}

export function badge() {
  const element = h("span", { class: "badge" });
  return {
    element,
    show(job) {
      const word = stateWord(job);
      element.className = `badge ${word.toLowerCase()}`;
      say(element, word);
    },
  };
}

/** The share of its steps that a job has taken, null as long as their number is not known. */
export function share(job) {
  if (job.state === "SUCCEEDED") return 1;
  return job.total_steps ? Math.min(1, job.step / job.total_steps) : null;
}

export function bar(label) {
  const element = h("progress", { max: 1, "aria-label": label });
  return {
    element,
    show(job) {
      const done = share(job);
      element.className = stateWord(job).toLowerCase();
      if (done === null && job.state === "RUNNING") element.removeAttribute("value");
      else element.value = done ?? 0;
    },
  };
}

/** How far a job is, in words. */
export function progressWords(job) {
  const steps = job.total_steps ? `step ${whole(job.step)} of ${whole(job.total_steps)}` : `step ${whole(job.step)}`;
  const epochs = `epoch ${whole(ENDED.has(job.state) ? job.epoch : Math.min(job.epoch + 1, job.total_epochs))} of ${whole(job.total_epochs)}`;
  const parts = [steps, epochs];
  if (job.seconds_left !== null) parts.push(`${duration(job.seconds_left)} left`);
  return parts.join(" · ");
}

/** How long a job has run. */
export function runTime(job) {
  if (job.began === null) return "–";
  return duration((job.ended ?? Date.now() / 1000) - job.began);
}

export function workerWords(job) {
  return ENDED.has(job.state) ? "–" : `${whole(job.workers)} of ${whole(job.wanted_workers)}`;
}
