// Preview Correspondence: a click shows where the place is in every frame, by the tables that the node has sent.
import { app } from "../../scripts/app.js";
import { Player, forNodes, set } from "./weft/player.js";

const RANKS = ["#ffe61a", "#1ae633", "#3366ff", "#ff4de6", "#33e6e6"]; // best first, as in the paper
const LOST = 0xffffff;

class Matches extends Player {
  constructor(node) {
    super(node, { height: 300, hint: "Run once, then click a place." });
    this.canvas.title = "Click a place: yellow is its best match in the other frames";
    this.canvas.addEventListener("click", (event) => this.click(event));
  }

  told(message, { grid, top_k }) {
    Object.assign(this, { grid, k: top_k, from: undefined, found: undefined });
    this.show({ clip: message.weft_clip, forward: message.weft_forward, backward: message.weft_backward });
  }

  get count() {
    return this.clips.clip?.length ?? 0;
  }

  click(event) {
    const image = this.at("clip"), at = image && this.pixel(event, image);
    if (!at) return;
    const [h, w] = this.grid, place = (size, cells) => Math.min(cells - 1, Math.floor(size * cells));
    this.from = { frame: this.frame, place: place(at[1] / image.naturalHeight, h) * w + place(at[0] / image.naturalWidth, w) };
    set(this.node, "points", JSON.stringify([{ x: Math.floor(at[0]), y: Math.floor(at[1]) }]));
    set(this.node, "frame", this.frame);
    this.found = this.follow();
    this.paint();
  }

  /** [frame][rank] places: from frame to frame it is the best match that is followed. */
  follow() {
    const found = [], { frame, place } = this.from;
    found[frame] = [place];
    for (let f = frame + 1, at = place; f < this.count; f++) at = (found[f] = this.row("forward", f - 1, at))[0] ?? -1;
    for (let f = frame - 1, at = place; f >= 0; f--) at = (found[f] = this.row("backward", f, at))[0] ?? -1;
    return found;
  }

  /** The K matches of a place in a table, which is a picture of numbers: red + 256 green + 65536 blue. */
  row(name, table, place) {
    const image = this.clips[name][table];
    if (place < 0 || !image?.naturalWidth) return [];
    if (!image.numbers) {
      const made = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
      const context = made.getContext("2d");
      context.drawImage(image, 0, 0);
      image.numbers = context.getImageData(0, 0, made.width, made.height).data;
    }
    const { numbers } = image, first = 4 * place * this.k;
    const value = (i) => numbers[i] + 256 * numbers[i + 1] + 65536 * numbers[i + 2];
    return Array.from({ length: this.k }, (_, i) => value(first + 4 * i)).filter((at) => at !== LOST);
  }

  draw(context) {
    const image = this.at("clip");
    if (!image) return;
    const box = this.box(image), [h, w] = this.grid;
    this.put(context, image, box);
    const places = this.found?.[this.frame] ?? [];
    places.map((place, rank) => [place, rank]).reverse().forEach(([place, rank]) => {
      context.lineWidth = 2;
      context.strokeStyle = this.frame === this.from.frame ? "#f13" : RANKS[rank % RANKS.length];
      const [x, y] = [(place % w) / w, Math.floor(place / w) / h];
      context.strokeRect(box.x + x * box.w, box.y + y * box.h, box.w / w, box.h / h);
    });
    if (this.found && !places.length) this.say(context, "lost here");
  }
}

forNodes(app, "matches", "WeftPreviewCorrespondence", (node) => new Matches(node));
