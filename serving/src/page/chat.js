"use strict";
const $ = (id) => document.getElementById(id);

// Storage in the browser.
const read = (name, otherwise) => {
  try { return JSON.parse(localStorage.getItem("gptoss." + name)) ?? otherwise; } catch { return otherwise; }
};
const write = (name, value) => localStorage.setItem("gptoss." + name, JSON.stringify(value));
const validConversation = (value) => value && typeof value.id === "string" && Array.isArray(value.messages)
  && value.messages.every((message) => message && typeof message.role === "string");
let conversations = read("conversations", []).filter(validConversation);
let settings = read("settings", {});
let current = conversations[0] ?? begin();
let running = null;
// The name of the served model, once it is known.
let model = "";

function begin() {
  return { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), title: "", messages: [], time: Date.now() };
}

function keep() {
  current.time = Date.now();
  if (current.messages.length && !conversations.includes(current)) conversations.push(current);
  conversations.sort((a, b) => b.time - a.time);
  for (;;) {
    try { write("conversations", conversations); return; } catch (error) {
      // The storage is full: remove the oldest conversation.
      if (conversations.length < 2) { console.warn(error); return; }
      conversations.pop();
    }
  }
}

// Conversations.
const titleOf = (conversation) =>
  conversation.title || conversation.messages.find((message) => message.role === "user")?.content?.slice(0, 60) || "New conversation";

function showList() {
  const wanted = $("search").value.trim().toLowerCase();
  const found = conversations.filter((conversation) =>
    !wanted || titleOf(conversation).toLowerCase().includes(wanted)
    || conversation.messages.some((message) => (message.content || "").toLowerCase().includes(wanted)));
  $("list").replaceChildren(...found.map((conversation) => {
    const open = make("button", { className: "open", textContent: titleOf(conversation), onclick: () => show(conversation) });
    const rename = make("button", { className: "tool", textContent: "✎", title: "Rename", onclick: () => {
      const title = prompt("Title", titleOf(conversation));
      if (title !== null) { conversation.title = title.trim(); keep(); showList(); }
    } });
    const remove = make("button", { className: "tool", textContent: "✕", title: "Delete", onclick: () => {
      if (!confirm(`Delete “${titleOf(conversation)}”?`)) return;
      conversations = conversations.filter((other) => other !== conversation);
      write("conversations", conversations);
      if (conversation === current) show(conversations[0] ?? begin()); else showList();
    } });
    open.title = titleOf(conversation);
    rename.setAttribute("aria-label", `Rename “${titleOf(conversation)}”`);
    remove.setAttribute("aria-label", `Delete “${titleOf(conversation)}”`);
    if (conversation === current) open.setAttribute("aria-current", "true");
    return make("li", { className: conversation === current ? "current" : "" }, open, rename, remove);
  }));
  if (wanted && !found.length) $("list").append(make("li", { className: "none", textContent: "No conversation contains this." }));
}

function show(conversation) {
  stop();
  current = conversation;
  showMenu(false);
  showList();
  showLog();
  focusInput();
}

// Focus opens the keyboard of a phone, which would hide the conversation.
function focusInput() {
  if (!matchMedia("(pointer: coarse)").matches) $("input").focus();
}

// The list of conversations, which covers a part of a narrow page and is always visible on a wide one.
function showMenu(open) {
  open &&= matchMedia("(max-width: 760px)").matches;
  document.body.classList.toggle("menu", open);
  $("menu").setAttribute("aria-expanded", open);
}

// The conversation on the page.
function showLog() {
  const nodes = current.messages.map((message, index) => messageNode(message, index));
  $("log").replaceChildren(...nodes);
  if (!nodes.length) $("log").append(emptyNode());
  $("log").scrollTop = $("log").scrollHeight;
}

// The embedded model is small: these are questions of the kinds that it was trained on.
const EXAMPLES = { "gptoss-tiny": ["What is 12 + 30?", "Tell me a story about a fox.", "What is gptoss?"] };

function emptyNode() {
  const examples = Object.hasOwn(EXAMPLES, model) ? EXAMPLES[model] : [];
  const node = make("div", { id: "empty" }, make("h2", { textContent: examples.length ? "Try one of these" : "Ask a question" }));
  const buttons = examples.map((text) => make("button", { type: "button", textContent: text, onclick: () => { if (!running) say(text); } }));
  if (buttons.length) node.append(make("div", { id: "examples" }, ...buttons));
  node.append(make("p", { textContent: "Conversations are stored in this browser, and sent only to this server." }));
  return node;
}

const LABELS = { user: "You", assistant: "Answer", tool: "Result of a tool" };

function messageNode(message, index) {
  const node = make("article", { className: "message " + message.role });
  node.setAttribute("aria-label", LABELS[message.role] ?? message.role);
  fill(node, message, index);
  return node;
}

function fill(node, message, index) {
  const live = running?.message === message;
  const old = node.querySelector("details.reasoning");
  const wasFocused = old?.firstChild === document.activeElement;
  node.replaceChildren();
  if (message.role === "tool") {
    node.append(make("div", { className: "call" }, make("strong", { textContent: "Result of " + (message.name || "a call") }), codeBlock(message.content)));
    return;
  }
  let end = node;
  if (message.reasoning) {
    const summary = make("summary", { textContent: thoughtFor(message.thought) });
    const details = make("details", { className: "reasoning", open: old?.open ?? false }, summary, make("div", { textContent: message.reasoning }));
    node.append(details);
    if (wasFocused) summary.focus();
    end = details.open ? details.lastChild : summary;
  }
  if (message.content) {
    const text = make("div", { className: "text" });
    text.append(message.role === "user" ? message.content : marked(message.content));
    node.append(text);
    end = lastBlock(text);
  }
  for (const call of message.tool_calls ?? []) node.append(callNode(call, index, live));
  if (live) (message.tool_calls?.length ? node : end).append(make("span", { className: "cursor" }));
  if (message.error) node.append(make("p", { className: "error", textContent: message.error }));
  if (message.note) node.append(make("p", { className: "note", textContent: message.note }));
  if (!live) node.append(bar(message, index));
}

// The label of the reasoning. `time` is how long the model reasoned, in milliseconds; undefined while it still does.
function thoughtFor(time) {
  if (time === undefined) return "Thinking…";
  return time < 100 ? "Thought briefly" : `Thought for ${(time / 1000).toFixed(1)} s`;
}

// The innermost block that a text ends with, so that the cursor follows the last word.
function lastBlock(node) {
  if (node.matches(".block")) return node.querySelector("code");
  const last = node.lastChild;
  return last instanceof Element && last.matches("p, h2, h3, h4, h5, h6, ul, ol, li, blockquote, table, tr, th, td, .block") ? lastBlock(last) : node;
}

function callNode(call, index, live) {
  const card = make("div", { className: "call" }, make("strong", { textContent: "Calls " + call.function.name }), codeBlock(pretty(call.function.arguments)));
  const answered = current.messages.slice(index + 1).some((message) => message.tool_call_id === call.id);
  if (live || answered) return card;
  const result = make("textarea", { rows: 2, placeholder: "What did it return?" });
  result.setAttribute("aria-label", "Result of " + call.function.name);
  const give = make("button", { type: "button", textContent: "Send the result", onclick: () => {
    if (running) return;
    current.messages.splice(index + 1);
    current.messages.push({ role: "tool", tool_call_id: call.id, name: call.function.name, content: result.value });
    answer();
  } });
  card.append(result, give);
  return card;
}

const pretty = (text) => { try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; } };

function bar(message, index) {
  const button = (textContent, onclick) => make("button", { className: "small", type: "button", textContent, onclick });
  const items = [];
  if (message.content) {
    const copy = button("Copy", () => copyText(message.content, copy));
    items.push(copy);
  }
  if (message.role === "user") {
    items.push(button("Edit", () => edit(index)));
  } else {
    const regenerate = () => {
      if (running || !mayRemoveAfter(index)) return;
      current.messages.splice(index);
      answer();
    };
    items.push(button(message.error && !message.content ? "Try again" : "Regenerate", regenerate));
    if (message.stats) items.push(make("span", { textContent: message.stats }));
  }
  return make("div", { className: "bar" }, ...items);
}

// Whether the messages after an answer or question may be removed. If there is a further question among them, the user is asked.
function mayRemoveAfter(index) {
  return !current.messages.slice(index + 1).some((message) => message.role === "user") || confirm("This removes all messages after this one.");
}

function edit(index) {
  if (running) return;
  const node = $("log").children[index];
  const text = make("textarea", { value: current.messages[index].content, rows: 4 });
  text.setAttribute("aria-label", "Edit the message");
  const send = make("button", { className: "primary", type: "button", textContent: "Send", onclick: () => {
    if (running || !text.value.trim() || !mayRemoveAfter(index)) return;
    current.messages.splice(index);
    say(text.value);
  } });
  const cancel = make("button", { type: "button", textContent: "Cancel", onclick: () => {
    fill(node, current.messages[index], index);
    node.querySelector(".bar button:last-child").focus();
  } });
  text.onkeydown = (event) => { if (event.key === "Escape") { event.stopPropagation(); cancel.click(); } };
  node.replaceChildren(text, make("div", { className: "bar" }, send, cancel));
  text.focus();
}

// Requests.
function headers() {
  const fields = { "content-type": "application/json" };
  if (settings.key) fields.authorization = "Bearer " + settings.key;
  return fields;
}

function say(text) {
  current.messages.push({ role: "user", content: text });
  answer();
}

function request() {
  const messages = current.messages.filter((message) => !(message.error || message.note) || message.content).map((message) => {
    const { role, content, reasoning, tool_calls, tool_call_id } = message;
    return { role, content: content || (tool_calls?.length ? null : ""), ...(reasoning && { reasoning }), ...(tool_calls?.length && { tool_calls }), ...(tool_call_id && { tool_call_id }) };
  });
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { messages, stream: true, stream_options: { include_usage: true }, reasoning_effort: $("effort").value };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "max_completion_tokens", "seed"]) {
    if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  }
  const stops = (settings.stop || "").split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (settings.tools?.trim()) body.tools = JSON.parse(settings.tools);
  return body;
}

async function answer() {
  const conversation = current;
  const message = { role: "assistant", content: "", reasoning: "", tool_calls: [] };
  const control = new AbortController();
  let body;
  try { body = request(); } catch (error) { message.error = String(error); }
  conversation.messages.push(message);
  running = { message, control };
  showRunning(true);
  keep();
  showList();
  showLog();
  // The button that was pressed may be gone.
  if (document.activeElement === document.body) focusInput();
  $("status").textContent = "The model is answering";
  const index = conversation.messages.length - 1;
  const begun = performance.now();
  let first = 0, usage = null, drawing = 0, finish = "";
  const draw = () => {
    drawing = 0;
    if (current !== conversation) return;
    const log = $("log"), follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    fill(log.children[index], message, index);
    if (follows) log.scrollTop = log.scrollHeight;
  };
  try {
    if (body) for await (const chunk of chunks("v1/chat/completions", body, control.signal)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      const delta = choice?.delta ?? {};
      finish = choice?.finish_reason ?? finish;
      const thought = delta.reasoning ?? delta.reasoning_content;
      if (!first && (thought || delta.content || delta.tool_calls)) first = performance.now();
      if (thought) message.reasoning += thought;
      if ((delta.content || delta.tool_calls) && message.reasoning && !message.thought) message.thought = performance.now() - first || 1;
      if (delta.content) message.content += delta.content;
      for (const call of delta.tool_calls ?? []) {
        const known = message.tool_calls[call.index] ??= { id: call.id, type: "function", function: { name: call.function.name, arguments: "" } };
        known.function.arguments += call.function.arguments ?? "";
      }
      drawing ||= requestAnimationFrame(draw);
    }
  } catch (error) {
    if (error.name === "AbortError") message.note = "Stopped."; else message.error = error.message;
    if (error instanceof Unreachable) findModel();
  }
  cancelAnimationFrame(drawing);
  if (message.reasoning) message.thought ||= performance.now() - (first || begun);
  if (finish === "length") message.note ||= "Cut off: the maximum number of tokens, or the end of the context, was reached.";
  if (usage && first) {
    const seconds = (performance.now() - first) / 1000;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const speed = usage.completion_tokens > 1 && seconds > 0 ? ` · ${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    message.stats = `${usage.completion_tokens} tokens${speed} · first after ${((first - begun) / 1000).toFixed(2)} s · prompt ${usage.prompt_tokens}, of which ${cached} cached`;
  }
  running = null;
  showRunning(false);
  keep();
  draw();
  showList();
  $("status").textContent = message.error || message.note || "Answer complete";
}

// Shows Stop instead of Send during an answer.
function showRunning(is) {
  const hidesFocus = document.activeElement === $(is ? "send" : "stop");
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (hidesFocus) focusInput();
}

// The server could not be reached, or the connection was lost.
class Unreachable extends Error {}

// The result of a network operation. An error of the browser, such as “Failed to fetch”, is replaced by a more helpful message.
async function reached(operation, message) {
  try { return await operation; } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable(`${message} Is gptoss serve still running?`);
  }
}

// Server-sent events of a request, parsed.
async function* chunks(path, body, signal) {
  const request = fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  const response = await reached(request, `The server at ${location.host} does not answer.`);
  if (!response.ok) {
    const text = await response.text();
    let message = text;
    try { message = JSON.parse(text).error.message; } catch { /* not JSON: shown unchanged */ }
    throw new Error(`${response.status}: ${message}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const lost = `The connection to ${location.host} was lost.`;
    const { value, done } = await reached(reader.read(), lost);
    if (done) throw new Unreachable(`${lost} The answer is incomplete.`);
    rest += value;
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function stop() {
  running?.control.abort();
}

// Event handlers.
const grow = () => { const input = $("input"); input.style.height = ""; input.style.height = input.scrollHeight + 2 + "px"; };
$("input").oninput = grow;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").querySelector("form").requestSubmit(); }
};
$("ask").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("input").value;
  if (!text.trim() || running) return;
  $("input").value = "";
  grow();
  say(text);
};
$("stop").onclick = stop;
$("new").onclick = () => show(begin());
$("search").oninput = showList;
$("menu").onclick = () => {
  showMenu(!document.body.classList.contains("menu"));
  if (document.body.classList.contains("menu")) $("new").focus();
};
$("main").addEventListener("click", (event) => { if (!$("menu").contains(event.target)) showMenu(false); });
$("effort").value = settings.effort || "medium";
$("effort").onchange = () => { settings.effort = $("effort").value; write("settings", settings); };
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) {
    if (document.body.classList.contains("menu")) { showMenu(false); $("menu").focus(); } else stop();
  }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") { event.preventDefault(); showMenu(true); $("search").focus(); }
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); show(begin()); }
});

const THEMES = ["system", "light", "dark"];
function theme(name) {
  settings.theme = name;
  document.documentElement.dataset.theme = name;
  $("theme").textContent = "Theme: " + name;
}
theme(THEMES.includes(settings.theme) ? settings.theme : "system");
$("theme").onclick = () => { theme(THEMES[(THEMES.indexOf(settings.theme) + 1) % 3]); write("settings", settings); };

const dialog = $("settings"), fields = dialog.querySelector("form");
$("open-settings").onclick = () => {
  for (const field of fields.elements) if (field.name) field.value = settings[field.name] ?? "";
  $("settings-error").textContent = "";
  dialog.showModal();
};
$("defaults").onclick = () => {
  for (const field of fields.elements) if (field.name && field.name !== "key") field.value = "";
};
fields.onsubmit = (event) => {
  if (event.submitter?.value === "cancel") return;
  const tools = fields.elements.tools.value.trim();
  try { if (tools && !Array.isArray(JSON.parse(tools))) throw new Error("this is not a JSON array"); } catch (error) {
    event.preventDefault();
    $("settings-error").textContent = "Tools: " + error.message;
    return;
  }
  for (const field of fields.elements) if (field.name) settings[field.name] = field.value;
  write("settings", settings);
  findModel();
};

$("export").onclick = () => {
  const blob = new Blob([JSON.stringify(conversations, null, 1)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(blob), download: "conversations.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
$("import").onclick = () => $("file").click();
$("file").onchange = async () => {
  try {
    const found = JSON.parse(await $("file").files[0].text()).filter(validConversation);
    const ids = new Set(found.map((conversation) => conversation.id));
    conversations = [...conversations.filter((conversation) => !ids.has(conversation.id)), ...found];
    conversations.sort((a, b) => (b.time ?? 0) - (a.time ?? 0));
    write("conversations", conversations);
    show(conversations[0] ?? begin());
  } catch (error) { alert("The file has no conversations in the format of Export: " + error.message); }
  $("file").value = "";
};

// Shows the model's name. While the server does not return one, shows the reason and tries again.
let retry = 0;
async function findModel() {
  clearTimeout(retry);
  try {
    const response = await reached(fetch("v1/models", { headers: headers() }), `${location.host} does not answer.`);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error.message);
    const { id, max_model_len: context } = found.data[0];
    $("model").textContent = document.title = id;
    $("model").title = `context of ${context} tokens`;
    if (model !== id) {
      model = id;
      $("empty")?.replaceWith(emptyNode());
    }
  } catch (error) {
    $("model").textContent = error instanceof Unreachable ? "Not connected" : error.message;
    $("model").title = error.message;
    retry = setTimeout(findModel, 3000);
  }
}

showList();
showLog();
findModel();
