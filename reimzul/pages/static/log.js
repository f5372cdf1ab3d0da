// SPDX-License-Identifier: Apache-2.0
// Shows a build's log in its page: the end first, and what is added while it grows. The log is only ever inserted as
// text. Without this script the same links lead to the plain logs.
"use strict";
{
  const PIECE_BYTES = 65536, SCAN_BYTES = 1048576, MOST_LINES = 20000, POLL_MS = 2000, STATE_MS = 6000;
  const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001a\u001c-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
  const ESCAPE = /\u001b\[([0-9;]*)m|\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|.)?/g;
  const section = document.getElementById("log");
  let shown = null; // the log that is open

  const make = (parent, name, className, text) => {
    const element = parent.appendChild(document.createElement(name));
    if (className) element.className = className;
    if (text) element.textContent = text;
    return element;
  };

  // ANSI's colours become classes; every other escape sequence, and all that is not to be seen, is dropped or shown as ?
  const STYLES = { 1: "b", 2: "d", 3: "i", 4: "u" };
  const restyle = (styles, codes) => {
    for (const code of (codes || "0").split(";").map(Number)) {
      if (code === 0) styles.clear();
      else if (STYLES[code]) styles.add(STYLES[code]);
      else if (code === 22) { styles.delete("b"); styles.delete("d"); }
      else if ((code >= 30 && code <= 39) || (code >= 90 && code <= 97)) {
        for (const each of [...styles]) if (each[0] === "c") styles.delete(each);
        if (code !== 39 && code !== 38) styles.add(`c${code}`);
      }
    }
  };
  const addStyled = (line, text, styles) => {
    let from = 0;
    const add = (part) => {
      const plain = part.replace(HIDDEN, "?");
      if (!plain) return;
      if (styles.size) make(line, "span", [...styles].join(" "), plain);
      else line.append(plain);
    };
    for (const found of text.matchAll(ESCAPE)) {
      add(text.slice(from, found.index));
      if (found[1] !== undefined) restyle(styles, found[1]);
      from = found.index + found[0].length;
    }
    add(text.slice(from));
  };

  class Log {
    constructor(place, name) {
      this.name = name;
      this.arch = place.dataset.arch;
      this.attempt = place.dataset.attempt;
      this.folders = place.dataset.folders.split(" ");
      this.error = place.dataset.errorLog === name ? place.dataset.error : "";
      this.over = !place.dataset.live;
      this.folder = ""; // where it was found last
      this.start = this.end = 0; // the bytes that are shown
      this.size = 0;
      this.packed = null; // the bytes of a log that was gzipped
      this.styles = new Set();
      this.follows = true;
      this.draw();
    }

    draw() {
      section.replaceChildren();
      section.hidden = false;
      const header = make(section, "header");
      make(header, "h2", "", `${this.name} on ${this.arch}`);
      this.note = make(header, "span", "about");
      this.note.setAttribute("role", "status");
      const button = (text, act) => {
        const made = make(header, "button", "", text);
        made.type = "button";
        made.addEventListener("click", () => act().catch(() => this.say("The store does not answer.")));
        return made;
      };
      this.earlier = button("Load earlier", () => this.loadEarlier());
      this.jump = button("First error", () => this.findError());
      this.jump.hidden = !this.error;
      button("End", () => this.open());
      button("Close", async () => { shown = null; section.hidden = true; });
      this.text = make(section, "pre", "text");
      this.text.tabIndex = 0;
      this.text.setAttribute("aria-label", `${this.name} on ${this.arch}`);
      this.text.addEventListener("scroll", () => {
        this.follows = this.text.scrollTop + this.text.clientHeight > this.text.scrollHeight - 40;
      });
    }

    say(text) { this.note.textContent = text; }

    // Bytes of the log from wherever it is now: {bytes, from, size}, or null where it is nowhere.
    async read(from, limit) {
      if (this.packed) return this.cut(from, limit);
      const range = from < 0 ? `bytes=${from}` : `bytes=${from}-${from + limit - 1}`;
      const folders = this.folder ? [this.folder, ...this.folders.filter((each) => each !== this.folder)] : this.folders;
      for (const folder of folders) {
        const answer = await fetch(folder + this.name, { headers: { Range: range }, cache: "no-store" });
        if (answer.status === 404 || answer.status === 410) continue;
        this.folder = folder;
        if (answer.status === 416) {
          const size = Number((answer.headers.get("Content-Range") || "").split("/")[1]);
          return { bytes: new Uint8Array(), from: from < 0 ? 0 : from, size: Number.isNaN(size) ? this.size : size };
        }
        if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
        const bytes = new Uint8Array(await answer.arrayBuffer());
        if (answer.status === 200) {
          const at = from < 0 ? Math.max(0, bytes.length + from) : Math.min(from, bytes.length);
          return { bytes: bytes.slice(at, at + limit), from: at, size: bytes.length };
        }
        const [, first, size] = /bytes (\d+)-\d+\/(\d+)/.exec(answer.headers.get("Content-Range"));
        return { bytes, from: Number(first), size: Number(size) };
      }
      return this.unpack(from, limit);
    }

    async unpack(from, limit) {
      if (!("DecompressionStream" in window)) return null;
      for (const folder of this.folders) {
        const answer = await fetch(`${folder}${this.name}.gz`);
        if (!answer.ok) continue;
        const plain = answer.body.pipeThrough(new DecompressionStream("gzip"));
        this.packed = new Uint8Array(await new Response(plain).arrayBuffer());
        this.folder = folder;
        return this.cut(from, limit);
      }
      return null;
    }

    cut(from, limit) {
      const at = from < 0 ? Math.max(0, this.packed.length + from) : Math.min(from, this.packed.length);
      return { bytes: this.packed.slice(at, at + limit), from: at, size: this.packed.length };
    }

    // Show the end of the log, from the beginning of a line on.
    async open() {
      const piece = await this.read(-PIECE_BYTES, PIECE_BYTES);
      this.show(piece);
      this.follows = true;
      this.text.scrollTop = this.text.scrollHeight;
    }

    show(piece) {
      this.text.replaceChildren();
      this.decoder = new TextDecoder();
      this.styles.clear();
      this.last = null;
      if (!piece) { this.start = this.end = this.size = 0; return; }
      const skip = piece.from ? piece.bytes.indexOf(10) + 1 : 0;
      this.start = piece.from + skip;
      this.append(piece.bytes.subarray(skip), piece.from + piece.bytes.length, piece.size);
    }

    append(bytes, end, size) {
      this.end = end;
      this.size = size;
      const lines = this.decoder.decode(bytes, { stream: true }).split(/\r\n|[\n\r]/);
      lines.forEach((text, place) => {
        if (place || !this.last) this.last = make(this.text, "span", "line");
        addStyled(this.last, text, this.styles);
        if (place < lines.length - 1) this.last.append("\n");
      });
      while (this.text.childElementCount > MOST_LINES && this.follows) {
        this.start += new TextEncoder().encode(this.text.firstChild.textContent).length; // near enough for "load earlier"
        this.text.firstChild.remove();
      }
      this.earlier.hidden = this.start <= 0;
      if (this.follows) this.text.scrollTop = this.text.scrollHeight;
    }

    async loadEarlier() {
      const from = Math.max(0, this.start - PIECE_BYTES * 4);
      const piece = await this.read(from, this.start - from);
      if (!piece || !piece.bytes.length) return;
      const skip = from ? piece.bytes.indexOf(10) + 1 : 0;
      const before = this.text.scrollHeight;
      const fragment = document.createDocumentFragment();
      const styles = new Set();
      for (const text of new TextDecoder().decode(piece.bytes.subarray(skip)).split(/(?<=\n)/)) {
        addStyled(make(fragment, "span", "line"), text.replace(/\r/g, ""), styles);
      }
      this.text.prepend(fragment);
      this.start = from + skip;
      this.earlier.hidden = this.start <= 0;
      this.text.scrollTop += this.text.scrollHeight - before;
    }

    // Find the line of the first error: in what is shown, else backwards through the log.
    async findError() {
      if (this.mark()) return;
      this.follows = false;
      for (let to = this.start; to > 0;) {
        const from = Math.max(0, to - SCAN_BYTES);
        this.say("Looking for the first error …");
        const piece = await this.read(from, to - from);
        if (!piece) break;
        if (new TextDecoder().decode(piece.bytes).includes(this.error.trim())) {
          this.show(piece);
          this.say(`From byte ${this.start} on: “End” leads back.`);
          this.mark();
          return;
        }
        to = from && from + 4096; // a line may be cut
        if (from === 0) break;
      }
      this.say("The line of the first error was not found.");
    }

    mark() {
      const wanted = this.error.trim();
      const line = [...this.text.children].find((each) => each.textContent.includes(wanted));
      if (!wanted || !line) return false;
      line.classList.add("hit");
      this.follows = false;
      line.scrollIntoView({ block: "center" });
      return true;
    }

    // What has been added; another folder has the same bytes at the same offsets.
    async poll() {
      const known = this.end ? 1 : 0; // the last byte again: a range without any is an error
      const piece = await this.read(this.end - known, SCAN_BYTES);
      if (!piece) { this.say(this.over ? "The store does not have this log." : "Nothing is written yet."); return; }
      if (piece.size < this.end) { await this.open(); return; } // another log took its place
      this.append(piece.bytes.subarray(known), piece.from + piece.bytes.length, piece.size);
      const grows = !this.over || this.folder.includes("/live/");
      this.say(grows ? "Growing" : this.end >= this.size ? "Complete" : "");
    }

    get isDone() { return this.over && !this.folder.includes("/live/") && this.folder && this.end >= this.size; }

    // The build's JSON says whether the attempt is over, and where its logs are then.
    async readState() {
      const answer = await fetch(location.pathname.replace(/\.html$/, ".json"), { cache: "no-cache" });
      if (!answer.ok) return;
      const build = await answer.json();
      const leg = build.arches.find((each) => each.arch === this.arch);
      const logs = leg && leg.logs.find((each) => each.attempt === this.attempt);
      if (!logs) return;
      this.folders = logs.folders;
      if (logs.over && !this.over) { this.over = true; this.folder = ""; }
      if (leg.error_log === this.name && leg.error_line) { this.error = leg.error_line; this.jump.hidden = false; }
    }
  }

  const follow = async (log) => {
    let stateAt = 0;
    while (shown === log && !log.isDone) {
      try {
        if (!document.hidden) {
          if (!log.over && Date.now() - stateAt > STATE_MS) { stateAt = Date.now(); await log.readState(); }
          await log.poll();
        }
      } catch { log.say("The store does not answer; retrying."); }
      await new Promise((done) => setTimeout(done, POLL_MS));
    }
  };

  const openLog = async (place, name) => {
    const log = shown = new Log(place, name);
    try { await log.open(); } catch { log.say("The store does not answer; retrying."); }
    follow(log);
    return log;
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-log]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    openLog(link.closest("[data-folders]"), link.dataset.log).then((log) => {
      section.scrollIntoView({ block: "start" });
      log.text.focus({ preventScroll: true });
    });
  });
  const live = document.querySelector(".logs[data-live]");
  if (live) openLog(live, "build.log");
}
