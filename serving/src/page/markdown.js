"use strict";
// Creates DOM nodes, and converts Markdown to them. The model's output only becomes text nodes, never HTML.

const make = (tag, fields = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
};

// Markdown as nodes.
function marked(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)\s*(\S*)/);
    if (fence) {
      const body = [];
      for (at++; at < lines.length && !lines[at].trim().startsWith(fence[1]); at++) body.push(lines[at]);
      at++;
      out.append(codeBlock(body.join("\n")));
    } else if (/^\s*$/.test(line)) {
      at++;
    } else if (/^#{1,6}\s/.test(line)) {
      const level = line.match(/^#+/)[0].length;
      out.append(inline(make("h" + Math.min(level + 1, 6)), line.replace(/^#+\s+/, "")));
      at++;
    } else if (/^\s*([-*+]|\d+[.)])\s/.test(line)) {
      const list = make(/^\s*\d/.test(line) ? "ol" : "ul");
      if (list.tagName === "OL") list.start = parseInt(line, 10) || 1;
      for (; at < lines.length && /^\s*([-*+]|\d+[.)])\s|^\s{2,}\S/.test(lines[at]); at++) {
        if (/^\s*([-*+]|\d+[.)])\s/.test(lines[at])) list.append(inline(make("li"), lines[at].replace(/^\s*([-*+]|\d+[.)])\s+/, "")));
        else inline(list.lastChild, "\n" + lines[at].trim());
      }
      out.append(list);
    } else if (/^\s*>/.test(line)) {
      const body = [];
      for (; at < lines.length && /^\s*>/.test(lines[at]); at++) body.push(lines[at].replace(/^\s*>\s?/, ""));
      out.append(make("blockquote", {}, marked(body.join("\n"))));
    } else if (line.includes("|") && /^\s*\|?[\s:|-]+\|[\s:|-]*$/.test(lines[at + 1] ?? "")) {
      const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
      const row = (texts, tag) => make("tr", {}, ...texts.map((cell) => inline(make(tag), cell)));
      const table = make("table", {}, row(cells(line), "th"));
      for (at += 2; at < lines.length && lines[at].includes("|"); at++) table.append(row(cells(lines[at]), "td"));
      out.append(table);
    } else {
      const body = [];
      for (; at < lines.length && !/^\s*$|^\s*(```|~~~)|^#{1,6}\s|^\s*>/.test(lines[at]) && !(body.length && /^\s*([-*+]|\d+[.)])\s/.test(lines[at])); at++) body.push(lines[at]);
      out.append(inline(make("p"), body.join("\n")));
    }
  }
  return out;
}

function inline(node, text) {
  const marks = /(`+)([\s\S]+?)\1|\*\*([\s\S]+?)\*\*|(?<!\w)[*_](?=\S)([^*_\n]+)(?<=\S)[*_](?!\w)|\n/g;
  let from = 0;
  for (const mark of text.matchAll(marks)) {
    node.append(text.slice(from, mark.index));
    if (mark[2] !== undefined) node.append(make("code", { textContent: mark[2] }));
    else if (mark[3] !== undefined) node.append(inline(make("strong"), mark[3]));
    else if (mark[4] !== undefined) node.append(inline(make("em"), mark[4]));
    else node.append(make("br"));
    from = mark.index + mark[0].length;
  }
  node.append(text.slice(from));
  return node;
}

function codeBlock(text) {
  const copy = make("button", { className: "small copy", type: "button", textContent: "Copy", onclick: () => copyText(text, copy) });
  return make("div", { className: "block" }, make("pre", {}, make("code", { textContent: text })), copy);
}

async function copyText(text, button) {
  const copied = navigator.clipboard ? await navigator.clipboard.writeText(text).then(() => true, () => false) : copyByCommand(text);
  button.textContent = copied ? "Copied" : "Copy failed";
  setTimeout(() => { button.textContent = "Copy"; }, 1200);
}

// Over plain HTTP from another machine, browsers have no navigator.clipboard.
function copyByCommand(text) {
  const area = make("textarea", { value: text, className: "sr" }), focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
