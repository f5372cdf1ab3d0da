// SPDX-License-Identifier: Apache-2.0
// Shows a build's log in its page: the end first, and what is added while it grows. The log is only ever inserted as
// text. Without this script the same links lead to the plain logs.
"use strict";
{
  // The end that is shown first; what "load earlier" adds; what is read at once to find the error; and the most that is
  // in the page, so that its memory has a bound, however long the log is.
  const TAIL_BYTES = 65536, BLOCK_BYTES = 131072, SCAN_BYTES = 1048576, MOST_BYTES = 1048576;
  const POLL_MS = 2000, STATE_MS = 6000;
  const OVERLAP_BYTES = 4096; // of pieces that are searched: the error's line may be cut
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
  const addStyled = (parent, text, styles) => {
    let from = 0;
    const add = (part) => {
      const plain = part.replace(HIDDEN, "?");
      if (!plain) return;
      if (styles.size) make(parent, "span", [...styles].join(" "), plain);
      else parent.append(plain);
    };
    for (const found of text.matchAll(ESCAPE)) {
      add(text.slice(from, found.index));
      if (found[1] !== undefined) restyle(styles, found[1]);
      from = found.index + found[0].length;
    }
    add(text.slice(from));
  };

  const has = (text, error) => Boolean(error) && text.replace(ESCAPE, "").includes(error);

  // Whole lines of the log; those of the first error are marked.
  const makeBlock = (bytes, error) => {
    const block = document.createElement("span");
    block.bytes = bytes.length;
    block.className = "block";
    const text = new TextDecoder().decode(bytes).replace(/\r\n?/g, "\n"), styles = new Set();
    for (const part of has(text, error) ? text.split(/(?<=\n)/) : [text]) {
      addStyled(has(part, error) ? make(block, "mark", "hit") : block, part, styles);
    }
    return block;
  };

  const cut = async (whole, from, limit) => {
    const at = from < 0 ? Math.max(0, whole.size + from) : Math.min(from, whole.size);
    return { bytes: new Uint8Array(await whole.slice(at, at + limit).arrayBuffer()), from: at, size: whole.size };
  };
  const NOTHING = { bytes: new Uint8Array(), from: 0, size: 0 };
  // A piece of the log without the line that it begins within.
  const cutLine = ({ bytes, from }) => {
    const skip = from ? bytes.indexOf(10) + 1 : 0;
    return { bytes: bytes.subarray(skip), from: from + skip };
  };

  class Log {
    constructor(place, name) {
      this.name = name;
      this.arch = place.dataset.arch;
      this.attempt = place.dataset.attempt;
      this.folders = place.dataset.folders.split(" ");
      this.error = place.dataset.errorLog === name ? place.dataset.error.trim() : "";
      this.over = !place.dataset.live;
      this.folder = ""; // where it was found last
      this.start = this.end = this.size = 0; // the bytes that are shown, and all of them
      this.packed = null; // a log that was gzipped
      this.follows = true; // the end of the text is in view
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
      this.later = button("Load later", () => this.loadLater());
      this.jump = button("First error", () => this.findError());
      this.jump.hidden = !this.error;
      button("End", () => this.open());
      button("Close", async () => { shown = null; section.hidden = true; });
      this.text = make(section, "pre", "text");
      this.text.tabIndex = 0;
      this.text.setAttribute("role", "region");
      this.text.setAttribute("aria-label", `${this.name} on ${this.arch}`);
      this.text.addEventListener("scroll", () => {
        this.follows = this.text.scrollTop + this.text.clientHeight > this.text.scrollHeight - 40;
      });
    }

    say(text) { this.note.textContent = text; }

    // Bytes of the log from wherever it is now: {bytes, from, size}, or null where it is nowhere.
    async read(from, limit) {
      if (this.packed) return cut(this.packed, from, limit);
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
        if (answer.status === 200) return cut(await answer.blob(), from, limit);
        const bytes = new Uint8Array(await answer.arrayBuffer());
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
        this.packed = await new Response(plain).blob(); // which may lie on disk
        this.folder = folder;
        return cut(this.packed, from, limit);
      }
      return null;
    }

    // Show the end of the log, from the beginning of a line on.
    async open() {
      this.show(await this.read(-TAIL_BYTES, TAIL_BYTES), true);
      this.follows = true;
      this.text.scrollTop = this.text.scrollHeight;
    }

    // Show nothing but a piece; `tails`: what is added to the log is shown, too.
    show(piece, tails) {
      this.text.replaceChildren();
      this.tails = tails;
      const { bytes, from } = cutLine(piece || NOTHING);
      this.start = this.end = from;
      this.append({ ...(piece || NOTHING), bytes });
    }

    // Show more at the end: whole lines, or what is left at the end of a log that grows no more.
    append({ bytes, size }) {
      this.size = size;
      const isLast = this.over && this.end + bytes.length >= size;
      const whole = isLast ? bytes : bytes.subarray(0, bytes.lastIndexOf(10) + 1 || (bytes.length < TAIL_BYTES ? 0 : bytes.length));
      if (whole.length) this.text.append(makeBlock(whole, this.error));
      this.end += whole.length;
      this.keepPlace(() => {
        for (; this.isTooLong; this.text.firstChild.remove()) this.start += this.text.firstChild.bytes;
      });
      this.showButtons();
      if (this.follows && this.tails) this.text.scrollTop = this.text.scrollHeight;
    }

    async loadEarlier() {
      const from = Math.max(0, this.start - BLOCK_BYTES);
      const piece = await this.read(from, this.start - from);
      if (!piece || !piece.bytes.length) return;
      const { bytes, from: start } = cutLine(piece);
      this.keepPlace(() => {
        this.text.prepend(makeBlock(bytes, this.error));
        this.start = start;
      });
      for (; this.isTooLong; this.text.lastChild.remove()) {
        this.tails = false;
        this.end -= this.text.lastChild.bytes;
      }
      this.showButtons();
    }

    async loadLater() {
      const piece = await this.read(this.end, BLOCK_BYTES);
      if (!piece) return;
      this.append(piece);
      this.tails = this.end >= this.size;
      this.showButtons();
    }

    get isTooLong() { return this.end - this.start > MOST_BYTES && this.text.childElementCount > 1; }

    // Change what is above, and leave what is in view where it is.
    keepPlace(change) {
      const below = this.text.scrollHeight - this.text.scrollTop;
      change();
      this.text.scrollTop = this.text.scrollHeight - below;
    }

    showButtons() {
      this.earlier.hidden = this.start <= 0;
      this.later.hidden = this.tails;
    }

    // Find the line of the first error: in what is shown, else backwards through the log.
    async findError() {
      let step = SCAN_BYTES;
      for (let to = this.size; !this.scrollToError() && to > 0;) {
        const from = Math.max(0, to - step);
        this.say(`Looking for the first error: ${Math.round(100 * (1 - to / this.size))} % …`);
        const piece = await this.read(from, to - from);
        if (!piece || shown !== this) return;
        const isHere = has(new TextDecoder().decode(piece.bytes), this.error);
        if (isHere && step > BLOCK_BYTES) { step = BLOCK_BYTES; continue; }
        if (isHere) this.show(piece, false);
        to = from && from + OVERLAP_BYTES;
      }
      this.say(this.scrollToError() ? "" : "The line of the first error was not found.");
    }

    scrollToError() {
      const line = this.text.querySelector(".hit");
      if (line) {
        this.follows = false;
        line.scrollIntoView({ block: "center" });
      }
      return line !== null;
    }

    // What has been added; another folder has the same bytes at the same offsets.
    async poll() {
      if (!this.tails) return;
      const known = this.end ? 1 : 0; // the last byte again: a range without any is an error
      const piece = await this.read(this.end - known, SCAN_BYTES);
      if (!piece) { this.say(this.over ? "The store does not have this log." : "Nothing is written yet."); return; }
      if (piece.size < this.end) { await this.open(); return; } // another log took its place
      this.append({ bytes: piece.bytes.subarray(known), size: piece.size });
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
      if (leg.error_log === this.name && leg.error_line) { this.error = leg.error_line.trim(); this.jump.hidden = false; }
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
