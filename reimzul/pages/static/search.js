// SPDX-License-Identifier: Apache-2.0
// Filters the farm's names in the browser.
"use strict";
{
  const MOST = 200;
  const FOLDERS = { package: "packages", target: "targets", builder: "builders", batch: "batches" };
  const root = document.body.dataset.root;
  const query = document.getElementById("query");
  const results = document.getElementById("results");
  const found = document.getElementById("found");
  let names = [];

  const addLink = (path, text, kind) => {
    const item = results.appendChild(document.createElement("li"));
    const link = item.appendChild(document.createElement("a"));
    link.href = root + path.split("/").map(encodeURIComponent).join("/");
    link.textContent = text;
    item.append(" ");
    const tag = item.appendChild(document.createElement("span"));
    tag.className = "tag";
    tag.textContent = kind;
  };

  const show = () => {
    const wanted = query.value.trim().toLowerCase();
    results.replaceChildren();
    found.textContent = "";
    if (!wanted) return;
    if (/^[0-9a-f]{32}$/.test(wanted)) addLink(`builds/${wanted.slice(0, 2)}/${wanted}.html`, wanted, "build");
    const hits = names.filter(([, name]) => name.toLowerCase().includes(wanted));
    hits.sort((one, other) => rank(one[1], wanted) - rank(other[1], wanted) || one[1].localeCompare(other[1]));
    hits.slice(0, MOST).forEach(([kind, name]) => addLink(`${FOLDERS[kind]}/${name}.html`, name, kind));
    found.textContent = hits.length > MOST ? `${MOST} of ${hits.length} names` : hits.length === 1 ? "1 name" : `${hits.length} names`;
  };

  const rank = (name, wanted) => (name.toLowerCase() === wanted ? 0 : name.toLowerCase().startsWith(wanted) ? 1 : 2);

  query.form.addEventListener("submit", (event) => {
    event.preventDefault();
    const first = results.querySelector("a");
    if (first) location.href = first.href;
  });
  query.addEventListener("input", show);
  query.value = new URLSearchParams(location.search).get("q") || "";
  fetch(`${root}search.json`).then((answer) => answer.json()).then((known) => {
    names = Object.entries(known).flatMap(([kind, all]) => all.map((name) => [kind, name]));
    show();
  }).catch(() => { found.textContent = "The names cannot be loaded."; });
}
