// Chooses another job to compare with.

import { h, say } from "./dom.js";
import { ago, headline } from "./format.js";
import { follow } from "./net.js";
import { stateWord } from "./state.js";

/** Lets the user choose a job other than `id`, and calls `chosen` with its id. */
export function pick(id, chosen) {
  const list = h("ul", { class: "choices" });
  const found = h("p", { class: "hint", role: "status" });
  const search = h("input", { id: "other", type: "search", placeholder: "Search by id, name or status", input: typed });
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title", class: "picker", close: ended },
    h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, `Compare ${id} with`), h("label", { class: "hidden", for: "other" }, "Search jobs"), search, found, list, h("div", { class: "buttons" }, h("button", { type: "button", click: () => dialog.close() }, "Back"))),
  );
  let stop = () => {};
  let typing = null;

  function typed() {
    clearTimeout(typing);
    typing = setTimeout(begin, 250);
  }

  function begin() {
    stop();
    const rows = new Map();
    let ids = [];
    stop = follow(`/streams/jobs?${new URLSearchParams({ text: search.value.trim() })}`, (news) => {
      for (const row of news.rows ?? []) rows.set(row.id, row);
      if (!news.ids) return;
      ids = news.ids.filter((each) => each !== id);
      list.replaceChildren(...ids.map((each) => choice(rows.get(each))));
      say(found, ids.length ? "" : "No other job is like that.");
    });
  }

  function choice(row) {
    const words = [stateWord(row), headline(row.validation), ago(row.created)].filter((word) => word !== "–").join(" · ");
    const act = () => {
      dialog.close();
      chosen(row.id);
    };
    return h("li", {}, h("button", { type: "button", class: "choice", click: act }, h("span", {}, row.id), h("span", { class: "minor" }, words)));
  }

  function ended() {
    clearTimeout(typing);
    stop();
    dialog.remove();
  }

  document.body.append(dialog);
  dialog.showModal();
  begin();
}
