// What is live on the pages: the overview's numbers and charts, the feed of what happens, the slider over the history.
// Names and paths come in as data and are shown as text; only fragments that the server has made are put in as HTML.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const KEEP_MS = 120000;
  const FEED_ROWS = 400;

  // One stream for a page, closed while nobody looks: a browser has few connections to one host.
  function stream(address, onData) {
    let source = null;
    const note = byId("connection");
    const open = () => {
      if (source) return;
      source = new EventSource(address());
      source.onmessage = (e) => { if (note) note.hidden = true; onData(JSON.parse(e.data)); };
      source.onerror = () => {
        if (note) note.hidden = false;
        if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(() => { if (!document.hidden) open(); }, 1000); }
      };
    };
    const close = () => { if (source) { source.close(); source = null; } };
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    window.addEventListener("pagehide", close);
    open();
    return { restart() { close(); open(); }, close, open };
  }

  const bytes = (n) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let u = 0;
    while (n >= 999.5 && u < 4) { n /= 1000; u += 1; }
    return (u === 0 || n >= 9.95 ? Math.round(n) : n.toFixed(1)) + " " + units[u];
  };
  const span = (ms) => (ms < 1000 ? Math.round(ms) + " ms" : ms < 99500 ? (ms / 1000).toFixed(1) + " s" : Math.round(ms / 60000) + " min");
  const count = (n) => Math.round(n).toLocaleString("en");

  // Brings what is there into line with `html`, and leaves alone what is the same: an element that is replaced while a button
  // is held down on it loses the click, and a page that is being read loses focus, selection and scrolling.
  const shown = new Map();
  function replace(id, html) {
    const place = byId(id);
    if (!place || shown.get(id) === html) return;
    shown.set(id, html);
    const made = document.createElement("template");
    made.innerHTML = html;
    align(place, made.content);
  }
  const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  function align(old, made) {
    let was = old.firstChild;
    for (const now of [...made.childNodes]) {
      // Something came in before it, or went: what has a name is found again.
      if (was && now.id && !alike(was, now)) {
        const known = [...old.children].find((e) => alike(e, now));
        while (known && was !== known) { const gone = was; was = was.nextSibling; gone.remove(); }
      }
      if (!was || !alike(was, now)) {
        old.insertBefore(now, was);
        continue;
      }
      if (now.nodeType !== Node.ELEMENT_NODE) {
        if (was.data !== now.data) was.data = now.data;
      } else if (!was.isEqualNode(now)) {
        for (const { name } of [...was.attributes]) if (!now.hasAttribute(name)) was.removeAttribute(name);
        for (const { name, value } of now.attributes) if (was.getAttribute(name) !== value) was.setAttribute(name, value);
        align(was, now);
      }
      was = was.nextSibling;
    }
    while (was) { const gone = was; was = was.nextSibling; gone.remove(); }
  }

  // --- overview
  const samples = [];
  function draw(id, values) {
    const svg = byId(id);
    const top = Math.max(...values.map((v) => v.y), 1e-9);
    const end = performance.now();
    // From the first sample on, until there are two minutes of them.
    const width = Math.min(KEEP_MS, Math.max(10000, end - values[0].t));
    const points = values.map((v) => (240 - ((end - v.t) / width) * 240).toFixed(1) + " " + (57 - (v.y / top) * 52).toFixed(1));
    if (points.length < 2) return;
    const first = points[0].split(" ")[0], last = points[points.length - 1].split(" ")[0];
    svg.innerHTML = "";
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", "M" + first + " 60L" + points.join("L") + "L" + last + " 60Z");
    svg.append(path);
  }
  function overview(data) {
    replace("sentence", data.sentence);
    replace("switch", data.switch);
    replace("details", data.details);
    const now = performance.now();
    const s = { t: now, lag: data.lag_ms, pending: data.pending, messages: data.messages, wire: data.wire_bytes, changes: 0, rate: 0 };
    const before = samples[samples.length - 1];
    if (before && now > before.t + 50) {
      const seconds = (now - before.t) / 1000;
      // A daemon that was started anew counts from zero.
      s.changes = Math.max(0, s.messages - before.messages) / seconds;
      s.rate = Math.max(0, s.wire - before.wire) / seconds;
    }
    samples.push(s);
    while (samples.length && samples[0].t < now - KEEP_MS) samples.shift();
    const show = (name, key, text) => {
      byId("now-" + name).textContent = text(s[key]);
      draw("chart-" + name, samples.map((x) => ({ t: x.t, y: x[key] })));
    };
    show("lag", "lag", span);
    show("changes", "changes", count);
    show("rate", "rate", bytes);
    show("pending", "pending", count);
  }
  const live = byId("live-root");
  if (live) stream(() => live.dataset.live, overview);

  // --- pages of a vault: parts by the ids of their places
  const parts = byId("live-parts");
  if (parts) stream(() => parts.dataset.live, (data) => Object.entries(data).forEach(([id, html]) => replace(id, html)));

  // --- activity
  const feed = byId("feed");
  if (feed) {
    const filter = byId("feed-filter"), operation = byId("feed-operation"), pause = byId("feed-pause"), more = byId("feed-more");
    let paused = false, held = [], missed = 0, open = [];
    const cell = (row, text, cls) => { const td = document.createElement("td"); td.textContent = text; if (cls) td.className = cls; row.append(td); return td; };
    const clock = (ms) => { const d = new Date(ms); return d.toTimeString().slice(0, 8) + "." + String(d.getMilliseconds()).padStart(3, "0"); };
    function change(c) {
      const row = document.createElement("tr");
      cell(row, clock(c.time_ms), "time");
      cell(row, c.operation);
      cell(row, c.to ? c.path + " → " + c.to : c.path, "path");
      cell(row, c.extent ? c.extent[0] + " to " + c.extent[1] : "", "num");
      row.path = c.to || c.path;
      row.sent = cell(row, "", "num");
      open.push({ seq: c.seq, time: c.time_ms, cell: cell(row, "…", "num") });
      return row;
    }
    function mark(text, time) {
      const row = document.createElement("tr");
      row.className = "mark-row";
      cell(row, clock(time), "time");
      const td = cell(row, text);
      td.colSpan = 5;
      return row;
    }
    function durable(through, time) {
      open = open.filter((o) => {
        if (o.seq > through) return true;
        o.cell.textContent = span(Math.max(0, time - o.time));
        return false;
      });
      if (open.length > FEED_ROWS) open = open.slice(-FEED_ROWS);
    }
    function show(data) {
      const all = data.changes.map((c) => [c.time_ms, change(c)]).concat(data.marks.map((m) => [m.time_ms, mark(m.text, m.time_ms)]));
      const rows = all.sort((a, b) => b[0] - a[0]).map((r) => r[1]);
      feed.prepend(...rows);
      while (feed.rows.length > FEED_ROWS) feed.deleteRow(-1);
      for (const f of data.files) {
        const row = [...feed.rows].find((r) => r.path === f.path);
        if (row) { row.bytes = (row.bytes || 0) + f.bytes; row.sent.textContent = bytes(row.bytes); }
      }
      if (data.durable) durable(data.durable.through, data.durable.time_ms);
      missed = data.left_out;
      more.textContent = data.left_out > 0 ? count(data.left_out) + " more changes in the last moment: more than can be shown" : "";
      byId("feed-empty").hidden = feed.rows.length > 0;
    }
    const s = stream(
      () => feed.dataset.feed + "?filter=" + encodeURIComponent(filter.value) + "&operation=" + encodeURIComponent(operation.value),
      (data) => {
        if (!paused) return show(data);
        held.push(data);
        if (held.length > 200) held.shift();
        const n = held.reduce((sum, d) => sum + d.changes.length + d.left_out, 0);
        more.textContent = "Paused. " + count(n) + " changes since.";
      });
    let timer = 0;
    const again = () => { clearTimeout(timer); timer = setTimeout(() => { feed.replaceChildren(); open = []; s.restart(); }, 250); };
    filter.addEventListener("input", again);
    operation.addEventListener("change", again);
    byId("feed-form").addEventListener("submit", (e) => { e.preventDefault(); again(); });
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Go on" : "Pause";
      if (!paused) { const all = held; held = []; all.forEach(show); }
    });
  }

  // --- what should not happen by a slip
  document.addEventListener("submit", (e) => {
    const question = e.target.dataset.confirm;
    if (question && !window.confirm(question)) e.preventDefault();
  });

  // --- history: the slider puts a time into the field, letting go of it goes there.
  const slider = byId("slider");
  if (slider) {
    const at = byId("at"), line = byId("slider-line"), label = byId("slider-label");
    const from = Number(slider.dataset.from), to = Number(slider.dataset.to);
    const time = () => new Date(from + ((to - from) * Number(slider.value)) / 1000);
    const pad = (n) => String(n).padStart(2, "0");
    const words = (d) => d.getFullYear() + "-" + pad(d.getMonth() + 1) + "-" + pad(d.getDate()) + " " + pad(d.getHours()) + ":" + pad(d.getMinutes()) + ":" + pad(d.getSeconds());
    slider.hidden = false;
    slider.addEventListener("input", () => {
      at.value = Number(slider.value) >= 1000 ? "" : time().toISOString();
      label.textContent = at.value ? words(time()) : "now";
      slider.setAttribute("aria-valuetext", label.textContent);
      if (line) { line.setAttribute("x1", slider.value); line.setAttribute("x2", slider.value); }
    });
    slider.addEventListener("change", () => at.form.requestSubmit());
    // The histogram over it is dragged the same way, with a mouse or a finger; with the keyboard there is the slider.
    const chart = line && line.ownerSVGElement;
    if (chart) {
      let held = false;
      const follow = (e) => {
        const box = chart.getBoundingClientRect();
        slider.value = Math.round(Math.min(1, Math.max(0, (e.clientX - box.left) / box.width)) * 1000);
        slider.dispatchEvent(new Event("input"));
      };
      chart.classList.add("drag");
      chart.addEventListener("pointerdown", (e) => { held = e.button === 0; if (held) { chart.setPointerCapture(e.pointerId); follow(e); } });
      chart.addEventListener("pointermove", (e) => { if (held) follow(e); });
      chart.addEventListener("pointerup", (e) => { if (held) { held = false; follow(e); at.form.requestSubmit(); } });
      chart.addEventListener("pointercancel", () => { held = false; });
    }
  }
})();
