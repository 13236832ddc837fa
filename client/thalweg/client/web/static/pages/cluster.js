// The cluster: fleets, slots, and what waits for them.

import { arrange, h, say } from "../dom.js";
import { bytes, number, plural, whole } from "../format.js";
import { follow } from "../net.js";
import { badge } from "../state.js";
import { tiles } from "../tiles.js";

const NODE_HEADINGS = ["Node", "Fleet", "Slots in use", "GPUs", "Jobs"];

export function clusterPage(main) {
  document.title = "Cluster – Thalweg";
  const facts = tiles(["Fleets", "Slots in use", "Running jobs", "Waiting jobs", "Largest upload", "Server"]);
  const fleets = h("tbody");
  const none = h("p", { class: "empty", hidden: true }, "No fleet is connected. Start one: thalweg fleet --server HOST:PORT");
  const nodes = h("tbody");
  const nodeSection = section("Nodes", h("div", { class: "card table-card" }, h("table", { class: "stacked" }, h("caption", { class: "hidden" }, "Nodes of the fleets, and the jobs that have workers there"), h("thead", {}, h("tr", {}, ...NODE_HEADINGS.map((word) => h("th", { scope: "col" }, word)))), nodes)));
  const notice = h("p", { class: "problem", role: "status" });
  const shards = h("tbody");
  const shardSection = section("Shards", h("div", { class: "card table-card" }, h("table", {}, h("caption", { class: "hidden" }, "Shards"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Address"), h("th", { scope: "col" }, "Jobs of which it holds a part"))), shards)));
  const waiting = h("ul", { class: "waiting" });
  const idle = h("p", { class: "empty", hidden: true }, "No job waits.");
  main.append(
    h("h1", {}, "Cluster"),
    notice,
    facts.element,
    section("Fleets", h("div", { class: "card table-card" }, h("table", {}, h("caption", { class: "hidden" }, "Fleets and their slots"), h("thead", {}, h("tr", {}, ...["Fleet", "Slots in use", "Load"].map((word) => h("th", { scope: "col" }, word)))), fleets), none)),
    nodeSection,
    shardSection,
    section("What waits, and for what", h("div", { class: "card" }, waiting, idle)),
  );
  const known = {};
  return follow("/streams/cluster", (news, fresh) => {
    if (fresh) for (const name of Object.keys(known)) delete known[name];
    Object.assign(known, news);
    say(document.getElementById("connection"), known.problem ?? "");
    if (!known.fleets) return;
    const slots = known.fleets.reduce((sum, fleet) => sum + fleet.slots, 0);
    const used = known.fleets.reduce((sum, fleet) => sum + fleet.allotted, 0);
    facts.show({
      Fleets: whole(known.fleets.length),
      "Slots in use": `${whole(used)} of ${whole(slots)}`,
      "Running jobs": known.max_running_jobs ? `${whole(known.counts.RUNNING)} (at most ${whole(known.max_running_jobs)})` : whole(known.counts.RUNNING),
      "Waiting jobs": whole(known.waiting.length),
      "Largest upload": bytes(known.max_upload_bytes),
      Server: `release ${known.version}`,
    });
    none.hidden = known.fleets.length > 0;
    fleets.replaceChildren(...known.fleets.map((fleet) => fleetRow(fleet, known.closed[fleet.name])));
    say(notice, known.draining ? "The server is about to end: it takes no new jobs." : "");
    nodeSection.hidden = !known.nodes?.length;
    nodes.replaceChildren(...(known.nodes ?? []).map(nodeRow));
    shardSection.hidden = !known.shards.length;
    shards.replaceChildren(...known.shards.map((shard) => h("tr", {}, h("th", { scope: "row" }, shard.address), h("td", {}, whole(shard.jobs)))));
    idle.hidden = known.waiting.length > 0;
    arrange(waiting, known.waiting.map(waitingItem));
  });
}

function section(title, ...content) {
  return h("section", {}, h("h2", {}, title), ...content);
}

function fleetRow(fleet, closed) {
  const load = fleet.slots ? fleet.allotted / fleet.slots : 0;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, fleet.name || "unnamed", " ", closed ? closure(closed) : null),
    h("td", { "data-label": "Slots in use" }, `${whole(fleet.allotted)} of ${plural(fleet.slots, "slot")}`),
    h("td", { "data-label": "Load" }, h("progress", { max: 1, value: load, "aria-label": `Load of ${fleet.name}: ${number(load * 100)} %` })),
  );
}

/** Says that no workers are started at a fleet or a node. */
function closure(word) {
  return h("span", { class: "badge paused" }, word);
}

function nodeRow(node) {
  const jobs = node.jobs.flatMap(({ id, workers }, index) => [index ? ", " : "", h("a", { href: `/jobs/${encodeURIComponent(id)}` }, id), ` (${plural(workers, "worker")})`]);
  const cells = [node.fleet || "unnamed", `${whole(node.used)} of ${whole(node.slots)}`, whole(node.gpus), h("span", {}, ...(jobs.length ? jobs : ["–"]))];
  return h("tr", {}, h("th", { scope: "row" }, node.name || "unnamed", " ", node.closed ? closure(node.closed) : null), ...cells.map((cell, index) => h("td", { "data-label": NODE_HEADINGS[index + 1] }, cell)));
}

function waitingItem(job) {
  const state = badge();
  state.show(job);
  return h("li", {}, h("a", { href: `/jobs/${encodeURIComponent(job.id)}` }, job.id), state.element, h("span", { class: "minor" }, job.status || "waiting"));
}
