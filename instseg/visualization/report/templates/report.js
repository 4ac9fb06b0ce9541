"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;

  // Theme: the system's, until the button says otherwise.
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.style.colorScheme || (dark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => theme.setAttribute("aria-pressed", isDark());
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();

  // One IoU type at a time.
  const choose = (kind) => {
    all("[data-kind]").forEach((part) => (part.hidden = part.dataset.kind !== kind));
    all("input[name=kind]").forEach((input) => (input.checked = input.value === kind));
  };
  choose(document.querySelector("[data-kind]").dataset.kind);
  all(".switch").forEach((part) => (part.hidden = false));
  all("input[name=kind]").forEach((input) =>
    input.addEventListener("change", () => {
      const place = location.hash.replace(/^#[^-]*-/, `#${input.value}-`);
      choose(input.value);
      if (document.querySelector(`#${input.value}-curves`).getBoundingClientRect().top < 0) {
        document.getElementById(place.slice(1))?.scrollIntoView();
      }
    }),
  );

  // Tables that sort. A missing value comes last, whichever way.
  const compare = (a, b) =>
    isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  const sort = (heading) => {
    const body = heading.closest("table").tBodies[0];
    const direction = heading.ariaSort === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const rows = [...body.rows].sort(
      (a, b) => (value(a) === "") - (value(b) === "") || sign * compare(value(a), value(b)),
    );
    all("th", heading.parentNode).forEach((other) => (other.ariaSort = "none"));
    heading.ariaSort = direction;
    body.append(...rows);
  };
  all(".sortable thead button").forEach((button) =>
    button.addEventListener("click", () => sort(button.parentNode)),
  );

  // Categories that hold the filter's text.
  const filter = (input) => {
    const rows = [...document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows];
    const text = input.value.trim().toLowerCase();
    rows.forEach((row) => (row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(text)));
    const shown = rows.filter((row) => !row.hidden).length;
    input.parentNode.querySelector("output").value = `${shown} of ${rows.length}`;
  };
  all(".filter").forEach((input) => {
    input.parentNode.hidden = false;
    input.addEventListener("input", () => filter(input));
  });

  // A link may lead to what is hidden: the other IoU type, a row that the filter left out.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    const kind = target?.closest("[data-kind]")?.dataset.kind;
    if (!kind) return;
    choose(kind);
    if (target.hidden) {
      const input = document.getElementById(`${kind}-filter`);
      input.value = "";
      filter(input);
    }
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // Pictures, larger; arrow keys go on to the next of the same table or gallery.
  const viewer = document.getElementById("viewer");
  let shown = [];
  let current = 0;
  const show = (step) => {
    current = (current + step + shown.length) % shown.length;
    const image = shown[current].querySelector("img");
    Object.assign(viewer.querySelector("img"), { src: image.src, alt: image.alt });
    document.getElementById("viewer-title").textContent = shown[current].dataset.title;
  };
  all("button.open").forEach((button) =>
    button.addEventListener("click", () => {
      shown = all("button.open", button.closest("section"));
      current = shown.indexOf(button);
      show(0);
      viewer.showModal();
    }),
  );
  all("button", viewer).forEach((button) =>
    button.addEventListener("click", () =>
      button.value === "close" ? viewer.close() : show(Number(button.value)),
    ),
  );
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(step);
  });
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("close", () => shown[current].focus());
})();
