// Calls of the page's own server, and the streams that it sends.

import { say } from "./dom.js";

/** An answer that is no success. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem);
    this.status = status;
  }
}

const state = { session: null, onEnd: () => {} };

export function session() {
  return state.session;
}

export function began(about) {
  state.session = about;
}

/** Calls a function when the session has ended, wherever that is noticed. */
export function whenSessionEnds(act) {
  state.onEnd = act;
}

function ended() {
  state.session = null;
  state.onEnd();
}

async function answer(response) {
  let given = {};
  try {
    given = await response.json();
  } catch {
    given = { problem: `The page's server answered with ${response.status}.` };
  }
  if (!response.ok) {
    if (response.status === 401 && state.session) ended();
    throw new Refused(response.status, given.problem ?? "The page's server refused this.");
  }
  return given;
}

async function reached(request) {
  try {
    return await request;
  } catch {
    throw new Refused(0, "The page's server cannot be reached.");
  }
}

export async function get(path) {
  return answer(await reached(fetch(path, { headers: { accept: "application/json" } })));
}

export async function post(path, value = {}) {
  const headers = { "content-type": "application/json", "x-csrf-token": state.session?.csrf ?? "" };
  return answer(await reached(fetch(path, { method: "POST", headers, body: JSON.stringify(value) })));
}

/**
 * Follows a stream, as long as the page is visible. `take(news, fresh)` gets each message; `fresh` says that it is the first one of
 * a stream, which has everything. Returns a function that ends it.
 */
export function follow(path, take) {
  const line = document.getElementById("connection");
  let source = null;
  let retry = null;
  let closed = false;

  function open() {
    if (source || closed || document.hidden) return;
    let fresh = true;
    source = new EventSource(path);
    source.onmessage = (message) => {
      const news = JSON.parse(message.data);
      if ("ended" in news) {
        say(line, news.ended);
        again();
        return;
      }
      if (fresh) say(line, "");
      take(news, fresh);
      fresh = false;
    };
    source.onerror = () => {
      say(line, "The connection is lost; trying again.");
      again();
    };
  }

  function shut() {
    source?.close();
    source = null;
    clearTimeout(retry);
  }

  function again() {
    shut();
    retry = setTimeout(async () => {
      try {
        began((await get("/api/session")).session);
      } catch {
        if (!closed) again();
        return;
      }
      if (session()) open();
      else state.onEnd();
    }, 1500);
  }

  function changed() {
    if (document.hidden) shut();
    else open();
  }

  document.addEventListener("visibilitychange", changed);
  open();
  return () => {
    closed = true;
    shut();
    say(line, "");
    document.removeEventListener("visibilitychange", changed);
  };
}
