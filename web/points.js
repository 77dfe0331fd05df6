// Click to mask, on SAM Mask: a click is a point on the thing, with shift or the right button one beside it, a drag a
// box. They live in the node's own text widgets, so in the workflow; "Mask" runs the node alone.
import { app } from "../../scripts/app.js";
import { Player, button, canvasOf, forNodes, pixelsOf, runAlone, set, urlOf, widgetOf } from "./weft/player.js";

const DRAG = 5; // pixels of the screen that make a box of a click
const TEXTS = ["positive", "negative", "boxes"];

/** What a text widget holds, as [{numbers, frame}]; its old forms too: "x,y; x,y" and "5: x,y", KJNodes' JSON. */
function read(text, size) {
  text = text.trim();
  if (text.startsWith("[")) {
    try {
      return JSON.parse(text).map((e) => ({ numbers: Array.isArray(e) ? e : (e.box ?? [e.x, e.y]), frame: e.frame }));
    } catch {
      return [];
    }
  }
  return text.split("\n").flatMap((line) => {
    let frame;
    return line.split(";").filter((item) => item.trim()).flatMap((item) => {
      const [rest, at] = item.split(":").reverse();
      if (at !== undefined) frame = +at;
      const numbers = rest.trim().split(/[\s,]+/).map(Number);
      return numbers.length === size && numbers.every(Number.isFinite) ? [{ numbers, frame }] : [];
    });
  });
}

const write = (found, size) =>
  found.length
    ? JSON.stringify(
        found.map(({ numbers: [x, y, ...more], frame }) => ({
          ...(size === 2 ? { x, y } : { box: [x, y, ...more] }),
          ...(frame === undefined ? {} : { frame }),
        })),
      )
    : "";

class Clicker extends Player {
  constructor(node) {
    super(node, { height: 320, hint: "Run once, or connect a Load Video, to see the clip." });
    this.masks = new Map();
    this.undone = [];
    this.tools.append(
      button("Mask", "Make the mask now (Enter)", () => this.mask()),
      button("Undo", "Take the last click back (Backspace)", () => this.undo()),
      button("Clear", "Take all clicks away", () => (TEXTS.forEach((name) => this.set(name, [])), this.paint())),
    );
    this.canvas.title = "Click: a point on the thing. Shift-click or right click: not on it. Drag: a box. Keys: w a s d, x, X.";
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.from && ((this.to = this.place(event)), this.paint()));
    this.canvas.addEventListener("pointerup", (event) => this.up(event));
    this.canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    for (const name of TEXTS) {
      const widget = widgetOf(node, name), called = widget.callback;
      widget.callback = (...given) => (called?.apply(widget, given), this.paint());
    }
    const connected = node.onConnectionsChange;
    node.onConnectionsChange = (...given) => (connected?.apply(node, given), setTimeout(() => this.peek(), 100));
    setTimeout(() => this.peek(), 500);
  }

  told(message, { frames = [], at = 0 }) {
    this.show({ clip: message.weft_clip });
    this.masks = new Map(frames.map((frame, i) => [frame, this.load(message.weft_masks[i])]));
    if (!this.masks.has(this.frame)) this.go(frames[0] ?? at);
  }

  /** The first frame of the video that is connected, before anything has run. */
  peek() {
    if (this.count) return;
    const up = (node, name) => {
      const link = node?.inputs?.find((input) => input.name === name)?.link;
      const { graph } = this.node, found = link == null ? undefined : (graph.getLink?.(link) ?? graph.links[link]);
      return found && graph.getNodeById(found.origin_id);
    };
    const video = up(up(this.node, "images"), "video"), name = video?.widgets?.find((w) => w.name === "file")?.value;
    if (!name) return;
    const player = document.createElement("video");
    Object.assign(player, { muted: true, preload: "auto", src: urlOf({ filename: name, type: "input" }) });
    player.onloadeddata = () => {
      if (this.count) return;
      const still = document.createElement("canvas");
      Object.assign(still, { width: player.videoWidth, height: player.videoHeight });
      still.getContext("2d").drawImage(player, 0, 0);
      this.show({ clip: [still.toDataURL()] });
    };
  }

  found(name) {
    return read(String(widgetOf(this.node, name).value ?? ""), name === "boxes" ? 4 : 2);
  }

  set(name, found) {
    set(this.node, name, write(found, name === "boxes" ? 4 : 2));
  }

  /** The frame that a click is written with: none where it is the node's own. */
  get written() {
    return this.frame === this.usual ? undefined : this.frame;
  }

  get usual() {
    return widgetOf(this.node, "frame")?.value ?? 0;
  }

  down(event) {
    if (this.at("clip")) this.from = this.to = this.place(event);
    this.canvas.setPointerCapture?.(event.pointerId);
  }

  up(event) {
    const image = this.at("clip"), { from } = this;
    this.from = this.to = undefined;
    if (!image || !from) return;
    const box = this.box(image), end = this.place(event);
    const pixel = ([x, y]) => [
      Math.max(0, Math.min(image.naturalWidth - 1, Math.floor((x - box.x) / box.scale))),
      Math.max(0, Math.min(image.naturalHeight - 1, Math.floor((y - box.y) / box.scale))),
    ];
    const [a, b] = [pixel(from), pixel(end)];
    this.dragged = Math.hypot(end[0] - from[0], end[1] - from[1]) > DRAG && a[0] !== b[0] && a[1] !== b[1];
    if (this.dragged) {
      const low = [0, 1].map((i) => Math.min(a[i], b[i])), high = [0, 1].map((i) => Math.max(a[i], b[i]) + 1);
      this.note("boxes", [...low, ...high]);
    } else if (event.button === 2) this.picked(end, true);
  }

  /** A click, which follows the end of a drag as well. */
  pick(at, _, shift) {
    if (!this.dragged) this.note(shift ? "negative" : "positive", at.map(Math.floor));
    this.dragged = false;
  }

  note(name, numbers) {
    this.undone.push(name);
    this.set(name, [...this.found(name), { numbers, frame: this.written }]);
    this.paint();
  }

  undo() {
    const name = this.undone.pop() ?? TEXTS.findLast((each) => this.found(each).length);
    if (name) this.set(name, this.found(name).slice(0, -1));
    this.paint();
  }

  mask() {
    return runAlone(app, this.node);
  }

  key(event) {
    if (event.key === "Enter") this.mask();
    else if (event.key === "Backspace") this.undo();
    else return super.key(event);
    return true;
  }

  draw(context) {
    const image = this.at("clip");
    if (!image) return;
    const box = this.box(image), mask = this.masks.get(this.frame);
    this.put(context, image, box);
    if (mask?.complete && mask.naturalWidth) {
      context.globalAlpha = 0.5;
      this.put(context, tinted(mask), box);
      context.globalAlpha = 1;
    }
    const here = (name) => this.found(name).filter(({ frame }) => (frame ?? this.usual) === this.frame);
    const on = (x, y) => [box.x + x * box.scale, box.y + y * box.scale];
    context.lineWidth = 2;
    for (const { numbers: [left, top, right, bottom] } of here("boxes")) {
      context.strokeStyle = "#0f3";
      context.strokeRect(...on(left, top), (right - left) * box.scale, (bottom - top) * box.scale);
    }
    for (const [name, color] of [["positive", "#0f3"], ["negative", "#f13"]])
      for (const { numbers: [x, y] } of here(name)) {
        context.beginPath();
        context.arc(...on(x + 0.5, y + 0.5), 5, 0, 2 * Math.PI);
        Object.assign(context, { fillStyle: color, strokeStyle: "#fff" });
        context.fill();
        context.stroke();
      }
    if (this.from && this.to) {
      context.strokeStyle = "#fff";
      context.strokeRect(...this.from, this.to[0] - this.from[0], this.to[1] - this.from[1]);
    }
  }
}

/** A mask, white on black, as pink on nothing. */
function tinted(mask) {
  if (mask.tinted) return mask.tinted;
  const pixels = pixelsOf(mask);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([255, 0, 204, pixels.data[i]], i);
  return (mask.tinted = canvasOf(pixels));
}

forNodes(app, "points", "WeftSAMMask", (node) => new Clicker(node));
