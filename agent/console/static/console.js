// What pages do beyond reading and acting, which work without it: times in the reader's zone, parts that follow, keys.
"use strict";

const REFRESH_MS = 3000;

function showTimes(root) {
  for (const it of root.querySelectorAll("time[datetime]:not([data-ago])")) {
    it.textContent = new Date(it.dateTime).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
  }
}

// Parts marked data-live are taken from a fresh copy of the page; what somebody types in or looks at is left alone.
async function refresh() {
  const parts = document.querySelectorAll("[data-live]");
  if (!parts.length || document.hidden) return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected || answer.status === 401) { location.reload(); return; }
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelectorAll("[data-live]");
    parts.forEach((part, number) => replace(part, fresh[number]));
  } catch { /* The console is away; the page stays as it was. */ }
}

function replace(part, fresh) {
  if (!fresh || part.contains(document.activeElement) && document.activeElement.matches("input, select")) return;
  showTimes(fresh);
  if (part.innerHTML === fresh.innerHTML) return;
  const output = part.querySelector(".output");
  const follows = !output || output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
  const was = output ? output.scrollTop : 0;
  part.replaceChildren(...fresh.childNodes);
  const now = part.querySelector(".output");
  if (now) now.scrollTop = follows ? now.scrollHeight : was;
}

const PLACES = { o: "/", b: "/builds", s: "/servers", i: "/images", f: "/fleet", a: "/audit" };
let isGoing = false;

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (isGoing && PLACES[event.key]) location.assign(PLACES[event.key]);
  isGoing = event.key === "g";
  if (event.key === "/") {
    const field = document.querySelector("[data-search]");
    if (field) { event.preventDefault(); field.focus(); } else location.assign("/builds");
  }
});

showTimes(document);
for (const it of document.querySelectorAll("[data-tail] .output")) if (!location.hash) it.scrollTop = it.scrollHeight;
setInterval(refresh, REFRESH_MS);
