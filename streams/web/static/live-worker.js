// One stream of server-sent events for all tabs of a browser (a SharedWorker).
//
// A tab says what it shows ({watch}), with null when it goes to the background. While none is in the
// foreground there is no stream. The stream's address names what all of them show, so it is opened
// anew when that changes; tabs that come and go within a moment open it once.

"use strict";

const tabs = new Map(); // port -> token of what it shows
const seen = new Map(); // port -> when it was heard of last
let source = null, opened = "", timer = 0, live = "";

function open() {
  timer = 0;
  const tokens = [...new Set(tabs.values())].filter((each) => each).sort().slice(0, 8);
  const key = tokens.join(" ");
  if (key === opened && source && source.readyState !== 2) return;
  if (source) source.close();
  source = null;
  opened = key;
  if (!tokens.length) return;
  source = new EventSource(live + "?" + tokens.map((each) => "watch=" + each).join("&"));
  for (const name of ["figures", "outage"]) {
    source.addEventListener(name, (event) => tell({ name, data: event.data }));
  }
  source.onerror = () => tell({ name: "lost", data: "{}" });
}

function tell(message) {
  const now = Date.now();
  for (const [port, token] of tabs) {
    if (now - seen.get(port) > 90000) { tabs.delete(port); seen.delete(port); soon(); }
    else if (token) port.postMessage(message);
  }
}

function soon() { if (!timer) timer = setTimeout(open, 150); }

self.onconnect = (event) => {
  const port = event.ports[0];
  port.onmessage = ({ data }) => {
    live = data.live || live;
    seen.set(port, Date.now());
    if (data.gone) { tabs.delete(port); seen.delete(port); soon(); return; }
    if (tabs.get(port) !== data.watch) { tabs.set(port, data.watch); soon(); }
  };
  port.start();
};
