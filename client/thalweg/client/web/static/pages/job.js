// One job: what it does, its curves, its log, its file, and what can be done with it.

import { h, say } from "../dom.js";
import { take as takeCurves } from "../curves.js";
import { ago, duration, headline, number, whole } from "../format.js";
import { follow } from "../net.js";
import { badge, bar, ENDED, progressWords, runTime, workerWords } from "../state.js";
import { tiles } from "../tiles.js";
import { actions } from "../actions.js";
import { jobCharts } from "../job_charts.js";
import { workerTable } from "../worker_table.js";
import { counters, jobFile, log, story } from "../job_parts.js";

export function jobPage(main, go, id) {
  document.title = `${id} – Thalweg`;
  const state = badge();
  const progress = bar(`Progress of ${id}`);
  const status = h("p", { class: "status", role: "status" });
  const words = h("p", { class: "minor" });
  const problem = h("p", { class: "problem", role: "alert" });
  const doing = actions(id, go);
  const facts = tiles(["Loss", "Validation", "Test", "Learning rate", "Samples per second", "Workers", "Run time", "Accepted", "Owner"]);
  const curves = {};
  const charts = jobCharts(curves);
  const workers = workerTable();
  const events = log();
  const numbers = counters();
  main.append(
    h("p", { class: "crumbs" }, h("a", { href: "/" }, "Jobs"), " / "),
    h("div", { class: "title" }, h("h1", {}, id), state.element, doing.element),
    status,
    progress.element,
    words,
    problem,
    facts.element,
    h("section", { "aria-label": "Curves", class: "charts" }, charts.element),
    workers.element,
    h("div", { class: "columns" }, h("section", {}, h("h2", {}, "Log"), events.element), h("section", {}, h("h2", {}, "Counters"), numbers.element)),
    story(id),
    jobFile(id),
  );

  let job = null;
  const stop = follow(`/streams/jobs/${encodeURIComponent(id)}`, (news, fresh) => {
    if (fresh) {
      for (const name of Object.keys(curves)) delete curves[name];
      events.clear();
    }
    if (news.problem !== undefined) say(problem, news.problem);
    if (news.curves) takeCurves(curves, news.curves);
    if (news.curves || fresh) charts.draw();
    if (news.workers !== undefined) workers.show(news.workers);
    events.add(news.log ?? []);
    job = news.job ?? job;
    if (news.job) show(job);
  });

  function show(job) {
    state.show(job);
    progress.show(job);
    say(status, job.error ?? (ENDED.has(job.state) ? "" : job.status));
    status.classList.toggle("problem", Boolean(job.error));
    say(words, progressWords(job));
    doing.show(job);
    numbers.show(job);
    facts.show({
      Loss: number(job.loss),
      Validation: headline(job.validation),
      Test: job.test ? headline(job.test) : null,
      "Learning rate": ENDED.has(job.state) ? null : number(job.learning_rate),
      "Samples per second": whole(job.samples_per_second),
      Workers: workerWords(job),
      "Run time": job.seconds ? duration(job.seconds) : runTime(job),
      Accepted: ago(job.created),
      Owner: job.owner ? job.owner + (job.shared ? " (shared)" : "") : null,
    });
  }

  return stop;
}
