// Shows outputs of runs side by side: see outputs_page.py, which writes the data into the page.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("outputs-data").textContent);
  const root = document.getElementById("outputs");
  const PAGE = 10;
  let page = 0;

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  const select = (id, label, options, chosen) => {
    const box = element("select", { id });
    options.forEach(([value, text]) => box.append(element("option", { value }, text)));
    if (chosen !== undefined) box.value = chosen;
    controls.append(element("label", {}, label, box));
    box.addEventListener("change", () => { page = 0; show(); });
    return box;
  };

  const controls = element("div", { class: "controls" });
  const count = element("p", { role: "status" });
  const list = element("div");
  const pages = element("div", { class: "pages" });
  root.append(controls, count, list, pages);

  const names = data.runs.map((name, i) => [String(i), name]);
  const split = select("split", "split", data.splits.map((s, i) => [String(i), s.name]));
  const left = select("left", "run", names, String(data.left));
  const right = select("right", "next to", names, String(data.right));
  const which = select("which", "show", [
    ["differ", "where the two differ"],
    ["worse", "where the first is worse"],
    ["better", "where the first is better"],
    ["all", "all"],
  ]);
  const order = select("order", "order", [
    ["gap", "largest difference first"],
    ["file", "as in the file"],
  ]);
  const search = element("input", { type: "search", id: "search", placeholder: "in any text" });
  controls.append(element("label", {}, "find", search));
  search.addEventListener("input", () => { page = 0; show(); });

  // Words that are in no longest common subsequence with the reference are marked.
  const marked = (text, reference) => {
    const words = text.split(/(\s+)/), plain = (w) => w.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "");
    const a = words.map(plain), b = reference.split(/\s+/).map(plain);
    const found = element("div", { class: "text" });
    if (a.length * b.length > 4e6) { found.append(text); return found; }
    const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        table[i][j] = a[i] && a[i] === b[j] ? table[i + 1][j + 1] + 1
          : Math.max(table[i + 1][j], table[i][j + 1]);
      }
    }
    for (let i = 0, j = 0; i < a.length; i++) {
      while (j < b.length && a[i] !== b[j] && table[i][j + 1] === table[i][j]) j++;
      if (!a[i]) found.append(words[i]);
      else if (j < b.length && a[i] === b[j]) { found.append(words[i]); j++; }
      else found.append(element("mark", {}, words[i]));
    }
    return found;
  };

  const field = (name, text) => text
    ? [element("dt", {}, name), element("dd", {}, text)] : [];

  const card = (of, i, pair) => {
    const outputs = element("div", { class: "side" });
    const runs = [...pair, ...of.runs.filter((run) => !pair.includes(run))];
    for (const run of runs) {
      const at = of.runs.indexOf(run);
      if (at < 0) continue;
      const exact = of.exact[at][i] ? ", exact" : "";
      const kind = (pair.includes(run) ? "chosen" : "other") + (exact ? " exact" : "");
      outputs.append(element("section", { class: kind },
        element("h4", {}, data.runs[run], element("small", {}, ` ${of.rougeL[at][i].toFixed(1)}${exact}`)),
        marked(of.outputs[at][i], of.reference[i])));
    }
    return element("article", {},
      element("dl", {}, ...field("instruction", of.instruction[i]), ...field("input", of.input[i]),
        ...field("reference", of.reference[i])),
      outputs);
  };

  const show = () => {
    const of = data.splits[split.value], pair = [Number(left.value), Number(right.value)];
    const [a, b] = pair.map((run) => of.runs.indexOf(run));
    const wanted = search.value.toLowerCase();
    const gap = (i) => (a < 0 || b < 0 ? 0 : of.rougeL[a][i] - of.rougeL[b][i]);
    const keep = {
      all: () => true,
      differ: (i) => a >= 0 && b >= 0 && of.outputs[a][i].trim() !== of.outputs[b][i].trim(),
      worse: (i) => gap(i) < 0,
      better: (i) => gap(i) > 0,
    }[which.value];
    let rows = of.instruction.map((_, i) => i).filter(keep);
    if (wanted) {
      rows = rows.filter((i) => [of.instruction[i], of.input[i], of.reference[i],
        ...of.outputs.map((o) => o[i])].some((text) => text.toLowerCase().includes(wanted)));
    }
    if (order.value === "gap") rows.sort((x, y) => Math.abs(gap(y)) - Math.abs(gap(x)) || x - y);
    const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
    page = Math.min(page, last);
    count.textContent = `${rows.length} of ${of.instruction.length} examples`;
    list.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((i) => card(of, i, pair)));
    const turn = (by, text) => {
      const button = element("button", { type: "button" }, text);
      button.disabled = page + by < 0 || page + by > last;
      button.addEventListener("click", () => { page += by; show(); root.scrollIntoView(); });
      return button;
    };
    pages.replaceChildren(turn(-1, "previous"), ` ${page + 1} of ${last + 1} `, turn(1, "next"));
  };
  show();
})();
