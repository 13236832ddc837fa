// The list of jobs.

import { arrange, h, say } from "../dom.js";
import { ago, date, duration, headline, number, plural, whole } from "../format.js";
import { follow } from "../net.js";
import { sparkline } from "../spark.js";
import { badge, bar, ENDED, runTime, share, workerWords } from "../state.js";

const STATES = [
  ["", "All"],
  ["RUNNING", "Running"],
  ["QUEUED", "Queued"],
  ["SUCCEEDED", "Succeeded"],
  ["FAILED", "Failed"],
  ["CANCELLED", "Cancelled"],
];
const PAGE_ROWS = 25;

export function jobsPage(main, go) {
  document.title = "Jobs – Thalweg";
  const asked = new URLSearchParams(location.search);
  const query = { text: asked.get("text") ?? "", state: asked.get("state") ?? "", page: Number(asked.get("page") ?? 0) };
  const lines = new Map();
  let stop = () => {};
  let typing = null;

  const search = h("input", { type: "search", id: "search", placeholder: "Search by id, name, owner or status", value: query.text, input: typed });
  const chips = STATES.map(([state, word]) => {
    const count = h("span", { class: "count" });
    return { state, count, element: h("button", { class: "chip", type: "button", click: () => change({ state, page: 0 }) }, word, " ", count) };
  });
  const body = h("tbody");
  const summary = h("p", { class: "summary", role: "status" });
  const empty = h("p", { class: "empty", hidden: true });
  const back = h("button", { type: "button", click: () => change({ page: query.page - 1 }) }, "Newer");
  const on = h("button", { type: "button", click: () => change({ page: query.page + 1 }) }, "Older");
  const headings = ["Job", "State", "Progress", "Loss", "Validation", "Workers", "Accepted"];
  main.append(
    h("h1", {}, "Jobs"),
    h("div", { class: "toolbar", role: "search" }, h("label", { class: "hidden", for: "search" }, "Search jobs"), search, h("div", { class: "chips", role: "group", "aria-label": "State" }, ...chips.map((chip) => chip.element))),
    h("div", { class: "card table-card" }, h("table", { class: "jobs stacked" }, h("caption", { class: "hidden" }, "Jobs, the newest first"), h("thead", {}, h("tr", {}, ...headings.map((word) => h("th", { scope: "col" }, word)))), body), empty),
    h("nav", { class: "pager", "aria-label": "Pages of the list" }, back, summary, on),
  );

  function typed() {
    clearTimeout(typing);
    typing = setTimeout(() => change({ text: search.value.trim(), page: 0 }), 250);
  }

  function change(part) {
    Object.assign(query, part);
    const kept = Object.entries(query).filter(([, value]) => value);
    const path = kept.length ? `/?${new URLSearchParams(kept)}` : "/";
    history.replaceState(null, "", path);
    begin();
  }

  function begin() {
    stop();
    for (const chip of chips) chip.element.setAttribute("aria-pressed", String(chip.state === query.state));
    stop = follow(`/streams/jobs?${new URLSearchParams(query)}`, take);
  }

  let rows = new Map();
  let ids = [];
  let total = 0;
  let complete = false;

  function take(news, fresh) {
    if (fresh) rows = new Map();
    for (const row of news.rows ?? []) rows.set(row.id, row);
    ids = news.ids ?? ids;
    total = news.total ?? total;
    complete = news.whole ?? complete;
    if (news.problem !== undefined) say(document.getElementById("connection"), news.problem);
    if (news.counts) counts(news.counts);
    show(new Set((news.rows ?? []).map((row) => row.id)));
  }

  function counts(found) {
    const all = Object.values(found).reduce((a, b) => a + b, 0);
    for (const chip of chips) say(chip.count, whole(chip.state ? (found[chip.state] ?? 0) : all));
  }

  function show(changed) {
    for (const id of lines.keys()) if (!ids.includes(id)) lines.delete(id);
    for (const id of ids) {
      if (!lines.has(id)) lines.set(id, line(id));
      else if (!changed.has(id)) continue;
      lines.get(id).show(rows.get(id));
    }
    arrange(body, ids.map((id) => lines.get(id).element));
    const first = query.page * PAGE_ROWS;
    say(summary, total ? `${whole(first + 1)}–${whole(first + ids.length)} of ${plural(total, "job")}` : "");
    empty.hidden = total > 0 || !complete;
    say(empty, query.text || query.state ? "No job is like that." : "There are no jobs yet. Submit one: thalweg submit digits --server HOST:PORT");
    back.disabled = query.page === 0;
    on.disabled = first + ids.length >= total;
  }

  begin();
  return () => {
    clearTimeout(typing);
    stop();
  };
}

/** One line of the list, which is filled again when its job changes. */
function line(id) {
  const state = badge();
  const progress = bar(`Progress of ${id}`);
  const name = h("a", { class: "id", href: `/jobs/${encodeURIComponent(id)}` }, id);
  const owner = h("span", { class: "minor" });
  const status = h("span", { class: "minor status" });
  const done = h("span", { class: "minor" });
  const loss = h("span");
  const curve = h("span", { class: "curve" });
  const validation = h("td", { "data-label": "Validation", class: "short" });
  const workers = h("td", { "data-label": "Workers", class: "short" });
  const when = h("td", { "data-label": "Accepted", class: "short" });
  let drawn = "";
  const element = h(
    "tr",
    {},
    h("th", { scope: "row" }, h("div", {}, name, owner)),
    h("td", { "data-label": "State" }, h("div", {}, state.element, status)),
    h("td", { "data-label": "Progress", class: "progress" }, h("div", {}, progress.element, done)),
    h("td", { "data-label": "Loss", class: "loss" }, h("div", {}, curve, loss)),
    validation,
    workers,
    when,
  );

  return {
    element,
    show(job) {
      state.show(job);
      progress.show(job);
      say(owner, [job.owner, job.priority ? `priority ${job.priority}` : ""].filter(Boolean).join(" · "));
      say(status, job.error ?? (ENDED.has(job.state) ? "" : job.status));
      status.title = status.textContent;
      const part = share(job);
      const left = ENDED.has(job.state) ? `took ${runTime(job)}` : job.seconds_left === null ? "" : `${duration(job.seconds_left)} left`;
      say(done, [part === null ? "" : `${Math.floor(part * 100)} %`, left].filter(Boolean).join(" · "));
      say(loss, number(job.loss));
      const values = JSON.stringify(job.sparkline);
      if (values !== drawn) {
        drawn = values;
        curve.replaceChildren(sparkline(job.sparkline));
      }
      say(validation, headline(job.validation));
      say(workers, workerWords(job));
      say(when, ago(job.created));
      when.title = date(job.created);
    },
  };
}
