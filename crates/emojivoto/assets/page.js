// The voting grid on "/", the leaderboard on "/leaderboard". Both come from the REST interface of this server.
"use strict";

const main = document.getElementById("main");
const status = document.getElementById("status");
const board = location.pathname === "/leaderboard";

function say(text, kind) {
  status.textContent = text;
  status.className = kind || "";
}

async function ask(path) {
  const response = await fetch(path);
  const body = await response.text();
  if (response.ok) return body ? JSON.parse(body) : null;
  let reason = response.status + " " + response.statusText;
  try { reason = JSON.parse(body).error; } catch { /* a proxy answered, not the server */ }
  throw new Error(reason);
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function vote(emoji, button) {
  button.disabled = true;
  try {
    await ask("/api/vote?choice=" + encodeURIComponent(emoji.shortcode));
    say(emoji.unicode + " You voted for " + emoji.shortcode, "good");
  } catch (error) {
    say(emoji.unicode + " Voting for " + emoji.shortcode + " failed: " + error.message, "bad");
  }
  button.disabled = false;
}

async function showGrid() {
  const list = await ask("/api/list");
  say("Tap on your favourite emoji to vote");
  main.className = "grid";
  main.replaceChildren(...list.map((emoji) => {
    const button = element("button", { title: emoji.shortcode, textContent: emoji.unicode });
    button.addEventListener("click", () => vote(emoji, button));
    return button;
  }));
}

async function showBoard() {
  const list = await ask("/api/leaderboard");
  const most = Math.max(1, ...list.map((emoji) => Number(emoji.votes)));
  say(list.length ? "" : "Nobody has voted yet");
  main.className = "board";
  main.replaceChildren(...list.map((emoji) => element("div", { className: "row", title: emoji.shortcode },
    element("span", { className: "emoji", textContent: emoji.unicode }),
    element("meter", { max: most, value: Number(emoji.votes) }),
    element("span", { className: "votes", textContent: emoji.votes }))));
}

async function show() {
  try {
    await (board ? showBoard() : showGrid());
  } catch (error) {
    say(error.message, "bad");
  }
  // The leaderboard is live; the grid is asked for again only until it is there.
  if (board || !main.children.length) setTimeout(show, 2000);
}

for (const link of document.querySelectorAll("nav a")) {
  if (link.pathname === location.pathname) link.className = "here";
}
show();
