// SPDX-License-Identifier: Apache-2.0
// Says how old the pages are, and shows a page again where it changes by itself. All works without.
"use strict";
document.documentElement.classList.add("js");
{
  const body = document.body;
  const root = body.dataset.root;
  const SILENT_SECONDS = 60;
  const every = Number(body.dataset.refresh || (body.dataset.live ? 10 : 0));

  const formatAge = (seconds) =>
    seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;

  const checkAge = async () => {
    try {
      const status = await (await fetch(`${root}status.json`, { cache: "no-store" })).json();
      const made = Date.parse(status.made) / 1000;
      const since = Date.parse(status.since || status.made) / 1000;
      const now = Date.now() / 1000;
      let text = "";
      if (status.problem) text = `The history cannot be read: these pages are ${formatAge(now - since)} old.`;
      else if (now - made > SILENT_SECONDS) text = `These pages are ${formatAge(now - made)} old: reimzul-pages does not run.`;
      const place = document.getElementById("outage");
      if (text || !every) place.textContent = "";
      if (text) place.appendChild(document.createElement("p")).textContent = text;
    } catch { /* without an answer the time at the foot of the page is all that is known */ }
  };

  // The page itself, fetched again: the same trusted file that the browser would load.
  const refresh = async () => {
    if (document.hidden || document.activeElement !== body) return;
    const answer = await fetch(location.pathname, { cache: "no-cache" }).catch(() => null);
    if (!answer || !answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (fresh.body.dataset.made === body.dataset.made || !fresh.getElementById("content")) return;
    body.dataset.made = fresh.body.dataset.made;
    if (!fresh.body.dataset.live) delete body.dataset.live;
    const opened = [...document.querySelectorAll("details")].map((each) => each.open);
    const viewer = document.getElementById("log");
    fresh.querySelectorAll("details").forEach((each, place) => { if (place in opened) each.open = opened[place]; });
    const shown = document.getElementById("content");
    const content = fresh.getElementById("content");
    for (const part of [...shown.children]) if (part !== viewer) part.remove();
    for (const part of [...content.children]) if (part.id !== "log") shown.insertBefore(document.adoptNode(part), viewer);
    document.title = fresh.title;
    document.querySelector(".bottom").replaceWith(document.adoptNode(fresh.querySelector(".bottom")));
    checkAge();
  };

  checkAge();
  setInterval(checkAge, 30000);
  if (every) setInterval(() => { if (body.dataset.refresh || body.dataset.live) refresh(); }, every * 1000);
}
