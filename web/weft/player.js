// A small player for clips that a node has put into ComfyUI's temp folder: frames in step, by mouse and keyboard.
// It lives in a DOM widget of the node, so it is the same on the canvas and among Vue nodes. It keeps nothing in the
// workflow: pictures come with every run.
import { api } from "../../../scripts/api.js";

export const VIEW = "weft_view"; // the widget's name

export const urlOf = (file) => api.apiURL(`/view?${new URLSearchParams({ ...file, rand: file.filename })}`);

export const facts = (message) => JSON.parse(message?.weft_facts?.[0] ?? "{}");

/** An element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const { style, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.style, style);
  made.append(...children);
  return made;
}

export function button(text, title, act) {
  const style = { background: "var(--comfy-input-bg)", color: "var(--input-text)", border: "1px solid var(--border-color)" };
  Object.assign(style, { borderRadius: "4px", padding: "1px 6px", font: "12px sans-serif", cursor: "pointer" });
  const made = element("button", { textContent: text, title, type: "button", style });
  made.addEventListener("click", act);
  return made;
}

/** The pixels of a picture. */
export function pixelsOf(image, ...part) {
  const [left, top, width, height] = part.length ? part : [0, 0, image.naturalWidth, image.naturalHeight];
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.drawImage(image, left, top, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** A canvas that holds pixels. */
export function canvasOf(pixels) {
  const made = Object.assign(document.createElement("canvas"), { width: pixels.width, height: pixels.height });
  made.getContext("2d").putImageData(pixels, 0, 0);
  return made;
}

/** Text that can be read on any picture. */
export function write(context, text, x, y, color, align = "left") {
  Object.assign(context, { font: "bold 13px sans-serif", textAlign: align, strokeStyle: "#000", lineWidth: 3, fillStyle: color });
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

/** Puts an element into a node as its last widget; it is in neither the workflow's values nor the prompt. */
export function addView(node, root, height) {
  // The panel of a node's parameters would give the widget its own width, which is not that of the node.
  const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: () => height };
  const widget = node.addDOMWidget(VIEW, VIEW, root, options);
  widget.serialize = false;
  // The wheel zooms the graph here, too, but where it scrolls. Vue nodes hand it on by themselves.
  root.addEventListener("wheel", (event) => {
    if (root.scrollHeight <= root.clientHeight && !window.LiteGraph?.vueNodesMode) window.app?.canvas?.processMouseWheel(event);
  });
  return widget;
}

export class Player {
  constructor(node, { height = 260, hint = "Run once to see it." } = {}) {
    Object.assign(this, { node, hint, clips: {}, frame: 0, fps: 8, loop: true, playing: false });
    this.canvas = element("canvas", { style: { width: "100%", flex: "1 1 0", minHeight: "0", display: "block" } });
    this.range = element("input", { type: "range", min: 0, max: 0, value: 0, title: "Frame", style: { flex: "1" } });
    this.label = element("span", { style: { font: "12px monospace", minWidth: "5ch", textAlign: "right" } });
    this.play = button("▶", "Play or stop (space)", () => this.toggle());
    const row = { display: "flex", gap: "4px", alignItems: "center", flexWrap: "wrap", padding: "2px 0", font: "12px sans-serif" };
    this.bar = element("div", { style: row }, this.play, this.range, this.label);
    this.tools = element("div", { style: row });
    const style = { display: "flex", flexDirection: "column", height: "100%", minHeight: `${height}px`, outline: "none", userSelect: "none" };
    this.root = element("div", { tabIndex: 0, style, className: "weft-view" }, this.canvas, this.bar, this.tools);
    this.range.addEventListener("input", () => this.go(+this.range.value));
    this.root.addEventListener("keydown", (event) => this.key(event) && (event.preventDefault(), event.stopPropagation()));
    for (const kind of ["pointerdown", "pointermove", "pointerup", "click", "dblclick", "contextmenu"])
      this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.root.addEventListener("pointerdown", () => this.root.focus({ preventScroll: true }));
    this.canvas.addEventListener("click", (event) => this.picked(this.place(event), event.shiftKey));
    this.observer = new ResizeObserver(() => this.paint());
    this.observer.observe(this.canvas);
    this.widget = addView(node, this.root, height);
    const removed = node.onRemoved;
    node.onRemoved = (...given) => (this.stop(), this.observer.disconnect(), removed?.apply(node, given));
  }

  /** Shows clips by name, each a list of files. */
  show(clips, fps = this.fps) {
    this.fps = fps;
    this.clips = Object.fromEntries(
      Object.entries(clips).filter(([, files]) => files?.length).map(([name, files]) => [name, files.map((f) => this.load(f))]),
    );
    this.range.max = Math.max(0, this.count - 1);
    this.go(Math.min(this.frame, this.count - 1));
  }

  /** Adds a frame to a clip, and shows it. */
  add(name, file) {
    (this.clips[name] ??= []).push(this.load(file));
    this.range.max = this.count - 1;
    this.go(this.count - 1);
  }

  load(file) {
    const image = new Image();
    image.onload = () => this.paint();
    image.src = typeof file === "string" ? file : urlOf(file);
    return image;
  }

  get count() {
    return Math.max(0, ...Object.values(this.clips).map((clip) => clip.length));
  }

  /** The picture of a clip at this frame, its last where it is shorter; undefined until it is loaded. */
  at(name, frame = this.frame) {
    const clip = this.clips[name];
    const image = clip?.[Math.min(frame, clip.length - 1)];
    return image?.complete && image.naturalWidth ? image : undefined;
  }

  go(frame) {
    this.frame = Math.max(0, Math.min(frame, this.count - 1));
    this.range.value = this.frame;
    this.label.textContent = this.count ? `${this.frame + 1}/${this.count}` : "";
    this.paint();
  }

  toggle() {
    this.playing ? this.stop() : this.start();
  }

  start() {
    if (this.count < 2) return;
    if (this.frame === this.count - 1) this.go(0);
    this.playing = setInterval(() => {
      if (this.frame < this.count - 1) this.go(this.frame + 1);
      else if (this.loop) this.go(0);
      else this.stop();
    }, 1000 / this.fps);
    this.play.textContent = "❚❚";
  }

  stop() {
    clearInterval(this.playing);
    this.playing = false;
    this.play.textContent = "▶";
  }

  /** Whether a key meant something. */
  key({ key }) {
    const step = { w: [0, -1], a: [-1, 0], s: [0, 1], d: [1, 0] }[key];
    if (step) return this.point(step);
    if (key.toLowerCase() === "x" && this.cursor) return this.picked(this.cursor, key === "X"), true;
    const keys = {
      " ": () => this.toggle(),
      ArrowLeft: () => (this.stop(), this.go(this.frame - 1)),
      ArrowRight: () => (this.stop(), this.go(this.frame + 1)),
      Home: () => this.go(0),
      End: () => this.go(this.count - 1),
      l: () => (this.loop = !this.loop),
    };
    if (!(key in keys)) return false;
    keys[key]();
    return true;
  }

  /** The panels of the canvas, each a picture and where it stands. */
  panels() {
    const image = this.count && this.at(Object.keys(this.clips)[0]);
    return image ? [{ image, box: this.box(image) }] : [];
  }

  /** Moves a cross over the first panel, which x picks as a click does. */
  point([right, down]) {
    const [{ box } = {}] = this.panels();
    if (!box || !this.pick) return false;
    const [x, y] = this.cursor ?? [box.x + box.w / 2, box.y + box.h / 2];
    const within = (at, from, size) => Math.max(from, Math.min(at, from + size - 1));
    this.cursor = [within(x + (right * box.w) / 32, box.x, box.w), within(y + (down * box.h) / 32, box.y, box.h)];
    this.paint();
    return true;
  }

  /** A place of the canvas was chosen: `pick` is told the pixel of the picture there. */
  picked([x, y], shift) {
    const hit = this.panels().find(({ box }) => x >= box.x && y >= box.y && x < box.x + box.w && y < box.y + box.h);
    if (hit) this.pick?.([(x - hit.box.x) / hit.box.scale, (y - hit.box.y) / hit.box.scale], hit.image, shift);
  }

  /** Where a picture stands in the canvas: as large as fits, in the middle of a share of its width. */
  box(image, part = 0, parts = 1) {
    const { width, height } = this.canvas, wide = width / parts;
    const scale = Math.min(wide / image.naturalWidth, height / image.naturalHeight);
    const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
    return { x: part * wide + (wide - w) / 2, y: (height - h) / 2, w, h, scale };
  }

  /** A mouse event's place in the canvas, as shares of its sides, whatever zoom the graph has. */
  place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((event.clientX - left) / width) * this.canvas.width, ((event.clientY - top) / height) * this.canvas.height];
  }

  paint() {
    const { canvas } = this, context = canvas.getContext("2d");
    const width = Math.max(1, canvas.clientWidth), height = Math.max(1, canvas.clientHeight);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    if (!this.count) return this.say(context, this.hint);
    this.draw(context);
    if (!this.cursor) return;
    const [x, y] = this.cursor;
    Object.assign(context, { fillStyle: "#fff", globalCompositeOperation: "difference" });
    context.fillRect(x - 8, y - 1, 17, 2);
    context.fillRect(x - 1, y - 8, 2, 17);
    context.globalCompositeOperation = "source-over";
  }

  say(context, text) {
    context.font = "13px sans-serif";
    context.fillStyle = "#999";
    context.textAlign = "center";
    context.fillText(text, this.canvas.width / 2, this.canvas.height / 2);
  }

  put(context, image, box) {
    if (image) context.drawImage(image, box.x, box.y, box.w, box.h);
  }

  draw(context) {
    const image = this.at(Object.keys(this.clips)[0]);
    if (image) this.put(context, image, this.box(image));
  }
}

/** Calls `act` with what a node's run tells while it goes on, and `rest` when the run is over, however it ends. */
export function whileRunning(node, act, rest = () => {}) {
  const listeners = { "weft.run": ({ detail }) => String(detail.node) === String(node.id) && act(detail) };
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) listeners[end] = rest;
  for (const [kind, listen] of Object.entries(listeners)) api.addEventListener(kind, listen);
  const removed = node.onRemoved;
  node.onRemoved = (...given) => {
    for (const [kind, listen] of Object.entries(listeners)) api.removeEventListener(kind, listen);
    rest();
    removed?.apply(node, given);
  };
}

/** Runs one node, and what it needs, alone. */
export async function runAlone(app, node) {
  await app.queuePrompt(0, 1, [String(node.id)]);
}

/** Calls `make` for each new node of a class; what it returns is told of every run of the node. */
export function forNodes(app, name, type, make) {
  const made = new WeakMap(); // node -> what tells it of an earlier run
  const loaded = new WeakSet(); // nodes that came with a workflow
  app.registerExtension({
    name: `weft.${name}`,
    nodeCreated(node) {
      if (node.comfyClass !== type) return;
      const view = make(node);
      const executed = node.onExecuted;
      let told = false;
      const tell = (message) => ((told = true), view.told(message, facts(message)));
      node.onExecuted = function (message) {
        executed?.apply(this, arguments);
        tell(message);
      };
      made.set(node, (message) => told || !message || tell(message));
    },
    loadedGraphNode(node) {
      loaded.add(node);
    },
    // Who comes back to a workflow's tab gets new nodes, and the page the outputs of the last run after them. Nodes that
    // were not loaded with a workflow are left alone: outputs under their numbers may be those of others.
    onNodeOutputsUpdated(outputs) {
      for (const node of app.graph?._nodes ?? []) if (loaded.has(node)) made.get(node)?.(outputs[node.id]);
    },
  });
}

export const widgetOf = (node, name) => node.widgets.find((widget) => widget.name === name);

/** Sets a widget as a user would, so that the graph counts as changed. */
export function set(node, name, value) {
  const widget = widgetOf(node, name);
  widget.value = value;
  widget.callback?.(value);
  node.graph?.change?.();
}
