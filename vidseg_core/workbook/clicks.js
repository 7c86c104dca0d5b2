// Listens for clicks on the picture of the explorer that this element stands in, and tells the kernel where they fell:
// x and y as shares of the picture's width and height, which hold at any zoom.
function render({ model, el }) {
  const tell = (event) => {
    const picture = event.target.closest?.(".vidseg-picture");
    if (!picture?.closest(".vidseg-explorer")?.contains(el)) return;
    const box = picture.getBoundingClientRect();
    model.send({ x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
  };
  document.addEventListener("click", tell);
  return () => document.removeEventListener("click", tell);
}

export default { render };
