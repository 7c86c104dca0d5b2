// Moves an explorer that has no kernel: shows the picture that was drawn for the values of its controls, or the nearest one,
// and says so. In `data` a state is a list with a number for each control: which of the control's `texts` it has.
(function (root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const image = root.querySelector("img");
  const pictures = [image.src, ...data.pictures.map((picture) => "data:image/webp;base64," + picture)];
  const axes = data.controls.map((_, c) => [...new Set(data.states.map((state) => state[c]))].sort((a, b) => a - b));
  let shown = 0;

  // A menu's values have no distance from each other, so that another one is farther than any step of a slider.
  const step = (c, a, b) => (data.controls[c].menu ? Number(a !== b) : Math.abs(a - b) / data.controls[c].texts.length);
  const distance = (state, wanted) => state.reduce((sum, value, c) => sum + step(c, value, wanted[c]), 0);

  // The nearest state, among those that have the value of control `moved` if one was moved.
  function nearest(wanted, moved) {
    const numbers = [...data.states.keys()].filter((n) => moved === null || data.states[n][moved] === wanted[moved]);
    return numbers.reduce((a, b) => (distance(data.states[b], wanted) < distance(data.states[a], wanted) ? b : a));
  }

  const named = (state, which) => which.map((c) => `${data.controls[c].label} ${data.controls[c].texts[state[c]]}`).join(", ");

  function show(wanted, moved = null) {
    shown = nearest(wanted, moved);
    const state = data.states[shown];
    const other = [...state.keys()].filter((c) => state[c] !== wanted[c]);
    image.src = pictures[shown];
    image.alt = named(state, [...state.keys()]);
    inputs.forEach((input, c) => input.place(state[c]));
    status.textContent = other.length ? `Not drawn here: ${named(wanted, other)}. The nearest is shown: ${named(state, other)}.` : "";
  }

  function changed(c, place) {
    const wanted = [...data.states[shown]];
    wanted[c] = axes[c][place];
    show(wanted, c);
  }

  // An element of the page with its attributes and what is in it.
  function make(tag, attributes = {}, ...children) {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  }

  function menu(c) {
    const options = axes[c].map((value, n) => make("option", { value: n, textContent: data.controls[c].texts[value] }));
    const element = make("select", { onchange: () => changed(c, Number(element.value)) }, ...options);
    element.place = (value) => (element.value = axes[c].indexOf(value));
    return element;
  }

  function slider(c) {
    const element = make("input", { type: "range", min: 0, max: axes[c].length - 1, step: 1 });
    element.oninput = () => changed(c, Number(element.value));
    const readout = make("output");
    element.place = (value) => {
      element.value = axes[c].indexOf(value);
      readout.textContent = data.controls[c].texts[value];
      element.setAttribute("aria-valuetext", readout.textContent);
    };
    element.readout = readout;
    return element;
  }

  const inputs = data.controls.map((control, c) => (control.menu ? menu(c) : slider(c)));
  const rows = inputs.flatMap((input, c) => {
    if (data.controls[c].texts.length === 1) return []; // nothing to choose, as with a field for text
    input.disabled = axes[c].length === 1;
    return make("label", {}, make("span", { textContent: data.controls[c].label }), input, ...(input.readout ? [input.readout] : []));
  });
  const status = make("p", { className: "status", role: "status" });
  const note = make("p", { className: "note", textContent: `${data.states.length} pictures, drawn beforehand. The notebook draws all others.` });
  const frame = make("div", { className: "frame" }); // where a page is narrow, the picture scrolls in it
  image.replaceWith(frame);
  frame.append(image);
  frame.before(make("div", { className: "controls" }, ...rows), status);
  frame.after(note);

  image.classList.toggle("clickable", data.layouts.some((panels) => panels.length));
  image.onclick = (event) => {
    const box = image.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    const panel = data.layouts[data.layout[shown]].find(({ box: [l, t, r, b] }) => l <= x && x < r && t <= y && y < b);
    if (!panel) return;
    const [left, top, right, bottom] = panel.box;
    const [rows, columns] = data.lattice;
    const row = Math.floor(((y - top) / (bottom - top)) * rows);
    const column = Math.floor(((x - left) / (right - left)) * columns);
    const wanted = [...data.states[shown]];
    for (const [c, value] of Object.entries(panel.targets[row * columns + column])) wanted[c] = value;
    show(wanted);
  };
  show(data.states[0]);
})(document.currentScript.parentElement);
