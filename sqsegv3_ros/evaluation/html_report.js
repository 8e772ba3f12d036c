// The rotating point cloud of the report. Points come from the page itself and are drawn in software onto a 2D canvas:
// that works in every browser, without WebGL and without a network.
"use strict";
(() => {
  const canvas = document.getElementById("cloud");
  if (!canvas) return;
  const data = JSON.parse(document.getElementById("cloud-data").textContent);
  const context = canvas.getContext("2d", { alpha: false });
  const packed = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;  // the byte order of ImageData
  const background = packed([16, 18, 22]);
  const classColors = data.colors.map(packed);
  const { right, wrong, missed, not_evaluated } =
    Object.fromEntries(Object.entries(data.error_colors).map(([name, color]) => [name, packed(color)]));
  const START = { yaw: 0.35, pitch: 0.55, distance: 55, x: 8, y: 0, z: 0 };
  let view = { ...START };
  let scan, coloring = "prediction", colors, pixels, image, depth, scheduled = false;

  function unpack(text) {  // five planes of little-endian int16: x, y, z in centimetres, predicted and true label
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const values = new DataView(bytes.buffer);
    const count = bytes.length / 10;
    const plane = (p, scale) => Float32Array.from({ length: count }, (_, i) => values.getInt16((p * count + i) * 2, true) * scale);
    return { count, x: plane(0, 0.01), y: plane(1, 0.01), z: plane(2, 0.01), predicted: plane(3, 1), truth: plane(4, 1) };
  }

  function recolor() {
    colors = new Uint32Array(scan.count);
    for (let i = 0; i < scan.count; i++) {
      const predicted = scan.predicted[i], truth = scan.truth[i];
      if (coloring === "prediction") colors[i] = classColors[predicted];
      else if (coloring === "truth") colors[i] = classColors[truth];
      else if (!data.evaluated[truth]) colors[i] = not_evaluated;
      else if (predicted === truth) colors[i] = right;
      else colors[i] = data.evaluated[predicted] ? wrong : missed;
    }
    redraw();
  }

  function resize() {
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
    image = context.createImageData(canvas.width, canvas.height);
    pixels = new Uint32Array(image.data.buffer);
    depth = new Float32Array(pixels.length);
    redraw();
  }

  function redraw() {
    if (scheduled || !image || !colors) return;
    scheduled = true;
    requestAnimationFrame(() => { scheduled = false; draw(); });
  }

  function draw() {
    const { width, height } = canvas;
    pixels.fill(background);
    depth.fill(Infinity);
    // x forward, y left, z up: looking along yaw (0 is forward, counter-clockwise), pitched down
    const cy = Math.cos(view.yaw), sy = Math.sin(view.yaw), cp = Math.cos(view.pitch), sp = Math.sin(view.pitch);
    const focal = 0.9 * height, metres = 0.12 * focal;
    let drawn = 0;
    for (let i = 0; i < scan.count; i++) {
      const x = scan.x[i] - view.x, y = scan.y[i] - view.y, z = scan.z[i] - view.z;
      const along = x * cy + y * sy;
      const ahead = along * cp - z * sp + view.distance;
      if (ahead < 0.5) continue;
      const column = Math.floor(width / 2 + focal * (x * sy - y * cy) / ahead);
      const row = Math.floor(height / 2 - focal * (along * sp + z * cp) / ahead);
      const size = Math.max(2, Math.min(6, Math.round(metres / ahead)));
      if (column < 0 || row < 0 || column + size > width || row + size > height) continue;
      for (let r = row; r < row + size; r++) {
        for (let at = r * width + column, end = at + size; at < end; at++) {
          if (ahead < depth[at]) { depth[at] = ahead; pixels[at] = colors[i]; }
        }
      }
      drawn++;
    }
    context.putImageData(image, 0, 0);
    canvas.dataset.drawn = String(drawn);
  }

  function turn(yaw, pitch) {
    view.yaw += yaw;
    view.pitch = Math.max(-0.3, Math.min(Math.PI / 2, view.pitch + pitch));
    redraw();
  }

  function zoom(factor) {
    view.distance = Math.max(3, Math.min(250, view.distance * factor));
    redraw();
  }

  function shift(dx, dy) {  // along the ground, with the mouse
    const step = view.distance / (0.9 * canvas.clientHeight);
    view.x += step * (dy * Math.cos(view.yaw) - dx * Math.sin(view.yaw));
    view.y += step * (dy * Math.sin(view.yaw) + dx * Math.cos(view.yaw));
    redraw();
  }

  const fingers = new Map();
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.max(1, Math.hypot(a.x - b.x, a.y - b.y));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last.x, dy = event.clientY - last.y;
    const before = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (before) { zoom(before / spread()); shift(dx / 2, dy / 2); }
    else if (event.shiftKey || event.buttons & 2) shift(dx, dy);
    else turn(dx * 0.006, dy * 0.006);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(event.deltaY * 0.001)); }, { passive: false });
  canvas.addEventListener("dblclick", () => { view = { ...START }; redraw(); });
  canvas.addEventListener("keydown", (event) => {
    const moves = {
      ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0), ArrowUp: () => turn(0, -0.1), ArrowDown: () => turn(0, 0.1),
      "+": () => zoom(0.9), "-": () => zoom(1.1),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });

  const choice = document.getElementById("cloud-scan");
  choice.addEventListener("change", () => { scan = unpack(data.scans[choice.selectedIndex].points); recolor(); });
  const buttons = [...document.querySelectorAll("[data-coloring]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      coloring = button.dataset.coloring;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      recolor();
    });
  }
  scan = unpack(data.scans[0].points);
  recolor();
  new ResizeObserver(resize).observe(canvas);
})();
