"use strict";
// Everything shown stands in the page already: this hides, reorders and enlarges, and never makes
// markup out of text.
(() => {
  const get = (id) => document.getElementById(id);
  const list = get("images"), filter = get("filter"), sort = get("sort"), count = get("count");
  const dialog = get("dialog"), large = get("large"), recipe = get("recipe"), file = get("file");
  const befores = get("befores");
  const cards = [...list.children];
  const words = new Map(cards.map((card) => [card, card.textContent.toLocaleLowerCase()]));
  const number = (card, key) => Number(card.dataset[key]);
  const text = (card) => card.querySelector(".prompt").textContent;
  const orders = {
    name: (a, b) => number(a, "place") - number(b, "place"),
    newest: (a, b) => number(b, "modified") - number(a, "modified"),
    prompt: (a, b) => text(a).localeCompare(text(b)),
    // Compared as text of equal length: a seed has more digits than a number can hold.
    seed: (a, b) => (a.dataset.seed < b.dataset.seed ? -1 : a.dataset.seed > b.dataset.seed ? 1 : 0),
    size: (a, b) => number(b, "pixels") - number(a, "pixels"),
  };
  let current = null;

  const visible = () => [...list.children].filter((card) => !card.hidden);

  function select() {
    const wanted = filter.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      card.hidden = !wanted.every((word) => words.get(card).includes(word));
      shown += !card.hidden;
    }
    const all = cards.length + (cards.length === 1 ? " image" : " images");
    count.textContent = shown === cards.length ? all : shown + " of " + all;
    get("nothing").hidden = shown > 0;
  }

  function arrange() {
    const order = orders[sort.value];
    list.append(...cards.sort((a, b) => order(a, b) || orders.name(a, b)));
  }

  function show(card) {
    current = card;
    const small = card.querySelector("img"), link = card.querySelector("a");
    large.src = small.src;
    large.alt = small.alt;
    // Larger than the thumbnail at once, so that nothing jumps when the file itself has come.
    large.width = card.dataset.width;
    large.height = card.dataset.height;
    file.href = link.href;
    file.textContent = link.textContent;
    befores.replaceChildren(
      ...[...card.querySelectorAll(".before")].map((image) => image.cloneNode(true)));
    recipe.replaceChildren(card.querySelector("dl").cloneNode(true));
    const full = new Image();
    full.onload = () => { if (current === card) large.src = full.src; };
    full.src = link.href;
    if (!dialog.open) dialog.showModal();
  }

  function step(by) {
    const shown = visible(), place = shown.indexOf(current);
    if (place >= 0) show(shown[(place + by + shown.length) % shown.length]);
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) show(button.closest("li"));
  });
  dialog.addEventListener("close", () => {
    const card = current;
    current = null;
    if (card && !card.hidden) card.querySelector(".open").focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  get("close").addEventListener("click", () => dialog.close());
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
  get("copy").addEventListener("click", async () => {
    const button = get("copy");
    await navigator.clipboard.writeText(text(current));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy the prompt"; }, 1500);
  });
  get("copy").hidden = !navigator.clipboard;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (dialog.open && event.key === "ArrowLeft") step(-1);
    else if (dialog.open && event.key === "ArrowRight") step(1);
    else if (!dialog.open && event.key === "/" && document.activeElement !== filter) {
      event.preventDefault();
      filter.focus();
    }
  });
  filter.addEventListener("input", select);
  sort.addEventListener("change", arrange);
  get("tools").addEventListener("submit", (event) => event.preventDefault());
  get("tools").hidden = false;
  document.documentElement.classList.add("js");
  // A browser may have kept what was typed before the page was loaded again.
  select();
  arrange();
})();
