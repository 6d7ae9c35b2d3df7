// What a page does beyond what the server sent: figures that follow the log, charts, times as ages,
// and keys. Without it every page can be read.

"use strict";

(() => {
  const body = document.body;
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const store = {
    get(name) { try { return localStorage.getItem("streams." + name); } catch { return null; } },
    set(name, value) { try { localStorage.setItem("streams." + name, value); } catch { /* not kept */ } },
  };
  document.documentElement.classList.add("scripted"); // shows what needs a script, now and after swaps

  // -- numbers and times, as streams/web/rendering.py writes them

  const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const writers = {
    count: (value) => value === null ? "–" : grouped.format(value),
    rate: (value) => value === null ? "–"
      : value >= 10 || value === 0 ? grouped.format(value) : String(Number(value.toPrecision(2))),
    percent: (value) => value === null ? "–" : value >= 1 ? "100%" : `${(100 * Math.min(value, .999)).toFixed(1)}%`,
    age: (value) => value === null ? "–" : ageText(value),
    bytes: (value) => value === null ? body.dataset.unknown : bytesText(value),
  };
  const [days, hours, minutes, secs] = body.dataset.units.split(" ");
  function ageText(seconds) {
    for (const [unit, length] of [[days, 86400], [hours, 3600], [minutes, 60]]) {
      if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit}`;
    }
    return `${Math.max(0, Math.round(seconds))} ${secs}`;
  }
  function bytesText(bytes) {
    let value = bytes, unit = "B";
    for (const larger of ["KiB", "MiB", "GiB", "TiB"]) {
      if (value < 1024) break;
      [value, unit] = [value / 1024, larger];
    }
    return `${unit === "B" || value >= 10 ? grouped.format(value) : value.toFixed(1)} ${unit}`;
  }
  function showAges(within = document) {
    for (const each of $$("time[datetime]", within)) {
      const seconds = (Date.now() - Date.parse(each.dateTime)) / 1000;
      if (!each.title) each.title = each.textContent;
      if (Number.isNaN(seconds) || each.classList.contains("exact")) continue;
      const form = seconds >= 0 ? body.dataset.ago : body.dataset.in;
      each.textContent = form.replace("{age}", ageText(Math.abs(seconds)));
    }
  }
  showAges();
  setInterval(() => { if (!document.hidden && !paused) showAges(); }, 10000);
  document.addEventListener("htmx:after:swap", () => { showAges(); drawCharts(); watchAgain(); });

  // -- figures

  let paused = store.get("paused") === "yes";
  let told = null, port = null, stream = null, place = {};
  const arriving = document.getElementById("arriving");
  const watching = document.getElementById("watch-arriving");
  const outage = document.getElementById("outage");

  function show(name, data) {
    if (paused) return;
    if (outage) {
      outage.hidden = name !== "outage" && name !== "lost";
      if (!outage.hidden && !outage.textContent) outage.textContent = body.dataset.lost;
    }
    if (name === "arriving") showArrived(JSON.parse(data));
    if (name !== "figures" && name !== "outage") return;
    const found = JSON.parse(data);
    for (const each of $$("[data-figure]")) {
      const figures = found[each.dataset.subject];
      if (!figures || !(each.dataset.figure in figures)) continue;
      if (each.localName === "progress") { each.value = figures[each.dataset.figure]; continue; }
      const text = writers[each.dataset.how || "count"](figures[each.dataset.figure]);
      if (each.textContent !== text) each.textContent = text;
    }
    for (const [subject, chart] of charts) {
      const figures = found[subject];
      const value = figures && figures[{ topic: "rate", group: "lag", view: "folded", processor: "rate" }[subject.split(":")[0]]];
      if (value === undefined || value === null) continue;
      chart.data[0].push(Date.now() / 1000);
      chart.data[1].push(value);
      if (chart.data[0].length > 1800) chart.data.forEach((each) => each.shift());
      chart.plot.setData(chart.data);
    }
    renew(found);
  }

  // A part of a page that is still being found out is asked for anew when what is told of it differs
  // from what it shows; one that nothing is asked for by itself, with the whole page.
  function renew(found) {
    for (const each of $$("[data-progress]")) {
      const told = found[each.dataset.progress];
      if (!told) continue;
      const version = String(told.version ?? "gone");
      if (!each.dataset.version && version !== "gone") each.dataset.version = version; // the first that is told
      if (version === each.dataset.version && !told.over) continue;
      if (each.hasAttribute("hx-get")) each.dispatchEvent(new Event("streams:renew"));
      else location.reload();
    }
  }

  function connect(wanted) {
    const live = new URL(body.dataset.live, location).href;
    if (window.SharedWorker) {
      if (!port) {
        port = new SharedWorker(body.dataset.worker, "streams " + body.dataset.live).port;
        port.onmessage = ({ data }) => show(data.name, data.data);
        port.start();
      }
      port.postMessage({ live, ...wanted });
    } else {
      if (stream) stream.close();
      stream = null;
      if (!wanted.watch && !wanted.arriving) return;
      const from = place.of === wanted.arriving && place.positions; // what arrives goes on where it was
      const arriving = from ? `${wanted.arriving}&positions=${encodeURIComponent(from)}` : wanted.arriving;
      const fields = Object.entries({ ...wanted, arriving }).filter(([, text]) => text);
      stream = new EventSource(`${live}?${new URLSearchParams(fields)}`);
      for (const name of ["figures", "outage", "arriving"]) {
        stream.addEventListener(name, (event) => show(name, event.data));
      }
      stream.addEventListener("arriving", (event) => { place = JSON.parse(event.data); });
      stream.addEventListener("again", () => connect(wanted)); // every few seconds
      stream.onerror = () => show("lost", "{}");
    }
  }
  function watchAgain() {
    const isSeen = !paused && !document.hidden;
    const tokens = $$("[data-watch]").map((each) => each.dataset.watch).filter((each) => each);
    const isOn = arriving && watching?.getAttribute("aria-pressed") === "true";
    const wanted = {
      watch: isSeen && [...new Set(tokens)].join(",") || null,
      arriving: isSeen && isOn && arriving.dataset.arriving || null,
    };
    const isNothing = !wanted.watch && !wanted.arriving;
    if (isNothing && !told) return;
    told = isNothing ? null : wanted;
    connect(wanted);
  }
  watchAgain();
  setInterval(() => { if (told && port) port.postMessage(told); }, 30000);
  document.addEventListener("visibilitychange", watchAgain);
  window.addEventListener("pagehide", () => { if (port) port.postMessage({ gone: true }); told = null; });
  window.addEventListener("pageshow", (event) => { if (event.persisted) watchAgain(); });

  // -- messages as they arrive

  function showArrived({ html, problem }) {
    if (watching?.getAttribute("aria-pressed") !== "true") return;
    const rows = document.createElement("template");
    rows.innerHTML = html || "";
    if (problem) {
      const row = document.createElement("tr");
      row.insertCell().textContent = problem;
      row.cells[0].colSpan = 5;
      rows.content.append(row);
    }
    showAges(rows.content);
    arriving.prepend(rows.content);
    while (arriving.rows.length > 200) arriving.rows[arriving.rows.length - 1].remove();
  }
  watching?.addEventListener("click", () => {
    watching.setAttribute("aria-pressed", String(watching.getAttribute("aria-pressed") !== "true"));
    watchAgain();
  });

  // -- pausing all of that

  const pause = document.getElementById("pause");
  if (pause) {
    const showPaused = () => pause.setAttribute("aria-pressed", String(paused));
    showPaused();
    pause.addEventListener("click", () => {
      paused = !paused;
      store.set("paused", paused ? "yes" : "no");
      showPaused();
      watchAgain();
    });
  }

  // -- charts

  const charts = new Map();
  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  const clock = new Intl.DateTimeFormat(document.documentElement.lang,
    { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const xAxis = {
    incrs: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600], space: 90,
    values: (plot, ticks) => ticks.map((each) => clock.format(each * 1000)),
  };
  function drawCharts() {
    for (const place of $$("[data-chart]")) {
      if (place.dataset.drawn || !window.uPlot) continue;
      place.dataset.drawn = "yes";
      fetch(place.dataset.series, { headers: { accept: "application/json" } })
        .then((answer) => answer.ok ? answer.json() : [[], []])
        .then((data) => {
          const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 } };
          const plot = new uPlot({
            width: Math.max(260, place.clientWidth), height: 160, legend: { show: false },
            axes: [{ ...axis, ...xAxis }, { ...axis, size: 70 }], scales: { y: { range: (u, low, high) => [0, high || 1] } },
            series: [{}, { label: place.dataset.title, stroke: colour("--accent"), width: 2 }],
          }, data, place);
          charts.set(place.dataset.chart, { plot, data });
          new ResizeObserver(() => plot.setSize({ width: Math.max(260, place.clientWidth), height: 160 })).observe(place);
        });
    }
  }
  drawCharts();

  // -- keys

  const dialog = document.getElementById("keys");
  const off = document.getElementById("keys-off");
  if (off) {
    off.checked = store.get("keys") === "off";
    off.addEventListener("change", () => store.set("keys", off.checked ? "off" : "on"));
  }
  const showKeys = document.getElementById("show-keys");
  if (showKeys && dialog) showKeys.addEventListener("click", () => dialog.showModal());
  let chosen = -1;
  function choose(step) {
    const rows = $$("main table tbody tr").filter((each) => each.querySelector("a") && each.offsetParent);
    if (!rows.length) return;
    rows.forEach((each) => each.classList.remove("chosen"));
    chosen = Math.min(rows.length - 1, Math.max(0, chosen + step));
    rows[chosen].classList.add("chosen");
    rows[chosen].querySelector("a").focus({ preventScroll: true });
    rows[chosen].scrollIntoView({ block: "nearest" });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || (off && off.checked)) return;
    if (event.target.closest("input, textarea, select, dialog")) return;
    if (event.key === "/") {
      const field = document.querySelector("[data-slash]");
      if (field) { event.preventDefault(); field.focus(); field.select?.(); }
    } else if (event.key === "?" && dialog) {
      event.preventDefault();
      dialog.showModal();
    } else if (event.key === "j") choose(1);
    else if (event.key === "k") choose(-1);
  });

  // -- boxes that tick all others of a form

  document.addEventListener("change", (event) => {
    const all = event.target.closest("[data-tick-all]");
    if (!all) return;
    for (const each of $$(`input[name="${all.dataset.tickAll}"]`, all.form || document)) each.checked = all.checked;
  });
})();
