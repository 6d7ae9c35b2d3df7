// One stream of server-sent events for all tabs of a browser (a SharedWorker).
//
// A tab says what it shows: the figures of a page ({watch}), and the topic in which it watches what
// arrives ({arriving}); null for what it does not, or while it is in the background. While none shows
// anything there is no stream. The stream's address names what all of them show, so it is opened
// anew when that changes; tabs that come and go within a moment open it once. It also ends every few
// seconds, as the server says, and is opened anew. What arrives goes on where it was.

"use strict";

const tabs = new Map(); // port -> what it shows
const seen = new Map(); // port -> when it was heard of last
const places = new Map(); // what arrives -> the positions that were told last
let source = null, opened = "", timer = 0, live = "", awaited = [], patience = 0;

function shown(name) {
  const found = [...tabs.values()].map((each) => each[name]).filter((each) => each);
  return [...new Set(found)].sort().slice(0, 8);
}

function withPlace(tail) {
  const place = places.get(tail);
  return encodeURIComponent(place ? `${tail}&positions=${encodeURIComponent(place)}` : tail);
}

function open() {
  timer = 0;
  const watched = shown("watch"), arriving = shown("arriving");
  const key = JSON.stringify([watched, arriving]);
  if (key === opened && source && source.readyState !== 2) return;
  // One that has just been opened says first where it begins: what arrives from then on is not lost.
  if (source?.readyState < 2 && Date.now() < patience && awaited.some((each) => !places.has(each))) return soon();
  if (source) source.close();
  source = null;
  opened = key;
  for (const each of [...places.keys()]) if (!arriving.includes(each)) places.delete(each);
  const fields = [
    ...watched.map((each) => "watch=" + each), ...arriving.map((each) => "arriving=" + withPlace(each)),
  ];
  if (!fields.length) return;
  awaited = arriving;
  patience = Date.now() + 3000;
  const stream = source = new EventSource(`${live}?${fields.join("&")}`);
  for (const name of ["figures", "outage"]) {
    source.addEventListener(name, (event) => tell({ name, data: event.data }));
  }
  source.addEventListener("arriving", (event) => {
    const { of, positions } = JSON.parse(event.data);
    places.set(of, positions || ""); // none, where it is told why there is nothing
    tell({ name: "arriving", data: event.data }, of);
  });
  source.addEventListener("again", () => { stream.close(); if (source === stream) open(); });
  source.onerror = () => {
    tell({ name: "lost", data: "{}" });
    if (stream.readyState === 2) return; // it was refused
    stream.close(); // its address has the positions of when it was opened: it is opened anew
    if (!timer) timer = setTimeout(open, 3000);
  };
}

function tell(message, arriving) {
  const now = Date.now();
  for (const [port, tab] of tabs) {
    if (now - seen.get(port) > 90000) { tabs.delete(port); seen.delete(port); soon(); }
    else if (arriving ? tab.arriving === arriving : tab.watch || tab.arriving) port.postMessage(message);
  }
}

function soon() { if (!timer) timer = setTimeout(open, 150); }

self.onconnect = (event) => {
  const port = event.ports[0];
  port.onmessage = ({ data }) => {
    live = data.live || live;
    seen.set(port, Date.now());
    if (data.gone) { tabs.delete(port); seen.delete(port); soon(); return; }
    const before = tabs.get(port);
    tabs.set(port, { watch: data.watch, arriving: data.arriving });
    if (before?.watch !== data.watch || before?.arriving !== data.arriving) soon();
  };
  port.start();
};
