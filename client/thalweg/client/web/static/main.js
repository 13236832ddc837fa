// The page: finds out who its user is, and shows what the address names.

import { h, say } from "./dom.js";
import { began, get, post, session, whenSessionEnds } from "./net.js";
import { clusterPage } from "./pages/cluster.js";
import { comparePage } from "./pages/compare.js";
import { jobPage } from "./pages/job.js";
import { jobsPage } from "./pages/jobs.js";
import { loginPage } from "./pages/login.js";

const PAGES = [
  [/^\/$/, jobsPage, "/"],
  [/^\/cluster$/, clusterPage, "/cluster"],
  [/^\/jobs\/([^/]+)$/, jobPage, "/"],
  [/^\/jobs\/([^/]+)\/with\/([^/]+)$/, comparePage, "/"],
];

const main = document.getElementById("main");
let leave = () => {};

function show() {
  leave();
  leave = () => {};
  main.replaceChildren();
  const nav = document.getElementById("nav");
  nav.hidden = !session();
  user();
  if (!session()) {
    document.title = "Log in – Thalweg";
    leave = loginPage(main, entered);
    return;
  }
  if (location.pathname === "/login") history.replaceState(null, "", "/");
  const found = PAGES.find(([pattern]) => pattern.test(location.pathname));
  for (const link of nav.querySelectorAll("a")) {
    if (found && link.getAttribute("href") === found[2]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!found) {
    document.title = "Not found – Thalweg";
    main.append(h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "/" }, "Go to the jobs")));
    return;
  }
  const [pattern, page] = found;
  const parts = pattern.exec(location.pathname).slice(1).map(decodeURIComponent);
  leave = page(main, go, ...parts) ?? (() => {});
}

function user() {
  const place = document.getElementById("user");
  const about = session();
  if (!about) {
    place.replaceChildren();
    return;
  }
  const name = about.name ? `${about.name} (${about.role})` : about.server;
  const shown = [h("span", { class: "who", title: `The server at ${about.server}` }, name)];
  if (about.needs_token) shown.push(h("button", { class: "quiet", type: "button", click: logOut }, "Log out"));
  place.replaceChildren(...shown);
}

async function logOut() {
  try {
    await post("/api/logout");
  } finally {
    began(null);
    show();
  }
}

function entered(about) {
  began(about);
  show();
}

/** Goes to another page without loading this one again. */
function go(path) {
  history.pushState(null, "", path);
  show();
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  const plain = event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
  if (!link || !plain || link.hasAttribute("download") || link.getAttribute("href").startsWith("#")) return;
  if (link.origin !== location.origin || link.target) return;
  event.preventDefault();
  go(link.pathname + link.search);
});
addEventListener("popstate", show);
whenSessionEnds(show);

async function begin() {
  const key = /^#key=(.+)$/.exec(location.hash)?.[1];
  // Not in the history, nor in a bookmark.
  if (key) history.replaceState(null, "", location.pathname + location.search);
  try {
    began((key ? await post("/api/login", { token: key }) : await get("/api/session")).session);
  } catch (error) {
    say(document.getElementById("connection"), error.message);
  }
  show();
}

begin();
