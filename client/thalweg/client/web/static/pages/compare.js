// Two jobs side by side: their curves over each other, their results, and in what their job files differ.

import { h, say } from "../dom.js";
import { take as takeCurves } from "../curves.js";
import { duration, headline, number, whole } from "../format.js";
import { chartsOf } from "../job_charts.js";
import { follow, get } from "../net.js";
import { runTime, stateWord } from "../state.js";

// What is shown of each job; differences of results are marked, those of times are not.
const FACTS = [
  ["State", stateWord],
  ["Steps", (job) => whole(job.step), true],
  ["Epochs", (job) => `${whole(job.epoch)} of ${whole(job.total_epochs)}`],
  ["Loss", (job) => number(job.loss), true],
  ["Validation", (job) => headline(job.validation), true],
  ["Test", (job) => headline(job.test), true],
  ["Samples per second", (job) => whole(job.samples_per_second)],
  ["Run time", (job) => (job.seconds ? duration(job.seconds) : runTime(job))],
  ["Weights (SHA-256)", (job) => job.weights_sha256 || "–", true],
];

export function comparePage(main, go, ...ids) {
  document.title = `${ids.join(" and ")} – Thalweg`;
  const jobs = ids.map((id) => ({ label: id, curves: {}, job: null }));
  const charts = chartsOf(jobs);
  const cells = FACTS.map(() => ids.map(() => h("td")));
  const problem = h("p", { class: "problem", role: "alert" });
  const files = h("section", {}, h("h2", {}, "Job files"));
  main.append(
    h("p", { class: "crumbs" }, h("a", { href: "/" }, "Jobs"), " / "),
    h("h1", {}, ids[0], h("span", { class: "and" }, " and "), ids[1]),
    problem,
    h("div", { class: "card table-card" }, h("table", { class: "pair" }, h("caption", { class: "hidden" }, "Results"), h("thead", {}, h("tr", {}, h("td", {}), ...ids.map((id) => h("th", { scope: "col" }, h("a", { href: `/jobs/${encodeURIComponent(id)}` }, id))))), h("tbody", {}, ...FACTS.map(([name], index) => h("tr", {}, h("th", { scope: "row" }, name), ...cells[index]))))),
    h("section", { "aria-label": "Curves", class: "charts" }, charts.element),
    files,
  );

  const stops = jobs.map((each, side) =>
    follow(`/streams/jobs/${encodeURIComponent(ids[side])}`, (news, fresh) => {
      if (fresh) for (const name of Object.keys(each.curves)) delete each.curves[name];
      if (news.curves) takeCurves(each.curves, news.curves);
      if (news.curves || fresh) charts.draw();
      each.job = news.job ?? each.job;
      if (news.job) FACTS.forEach(([, value], index) => say(cells[index][side], value(each.job)));
      FACTS.forEach(([, , result], index) => {
        const [left, right] = cells[index];
        for (const cell of cells[index]) cell.classList.toggle("differs", Boolean(result) && left.textContent !== right.textContent);
      });
    }),
  );
  compareFiles(ids, files, problem);
  return () => stops.forEach((stop) => stop());
}

async function compareFiles(ids, place, problem) {
  try {
    const { differences, lines } = await get(`/api/jobs/${ids.map(encodeURIComponent).join("/with/")}`);
    place.append(differenceTable(ids, differences), lineTable(ids, lines));
  } catch (error) {
    say(problem, error.message);
  }
}

function differenceTable(ids, differences) {
  if (!differences.length) return h("p", { class: "card" }, "The job files are equal.");
  const rows = differences.map(({ field, left, right }) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, field)), h("td", { "data-label": ids[0] }, left ?? "–"), h("td", { "data-label": ids[1] }, right ?? "–")));
  return h("div", { class: "card table-card" }, h("table", { class: "pair" }, h("caption", {}, "Fields that differ"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Field"), ...ids.map((id) => h("th", { scope: "col" }, id)))), h("tbody", {}, ...rows)));
}

function lineTable(ids, lines) {
  const rows = lines.map(({ left, right, differs }) => h("tr", { class: differs ? "differs" : null }, h("td", {}, h("code", {}, left ?? "")), h("td", {}, h("code", {}, right ?? ""))));
  return h(
    "details",
    { class: "card fold", open: true },
    h("summary", {}, h("h3", {}, "Side by side")),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Job files side by side" }, h("table", { class: "lines" }, h("caption", { class: "hidden" }, "Job files side by side; marked lines differ"), h("thead", {}, h("tr", {}, ...ids.map((id) => h("th", { scope: "col" }, id)))), h("tbody", {}, ...rows))),
  );
}
