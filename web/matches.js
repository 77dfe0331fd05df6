// Preview Correspondence: a click shows where the place is in every frame, by the tables that the node has sent.
import { app } from "../../scripts/app.js";
import { Player, forNodes, pixelsOf, set, write } from "./weft/player.js";

const RANKS = ["#ffe61a", "#1ae633", "#3366ff", "#ff4de6", "#33e6e6"]; // best first, as in the paper
const LOST = 0xffffff;

class Matches extends Player {
  constructor(node) {
    super(node, { height: 300, hint: "Run once, then click a place." });
    this.canvas.title = "Click a place, or w a s d and x: yellow is its best match in the other frames";
  }

  told(message, { grid, top_k }) {
    Object.assign(this, { grid, k: top_k, from: undefined, found: undefined });
    const tables = ["forward", "backward", "alike_forward", "alike_backward"];
    this.show({ clip: message.weft_clip, ...Object.fromEntries(tables.map((name) => [name, message[`weft_${name}`]])) });
  }

  get count() {
    return this.clips.clip?.length ?? 0;
  }

  pick(at, image) {
    const [h, w] = this.grid, place = (size, cells) => Math.min(cells - 1, Math.floor(size * cells));
    this.from = { frame: this.frame, place: place(at[1] / image.naturalHeight, h) * w + place(at[0] / image.naturalWidth, w) };
    set(this.node, "points", JSON.stringify([{ x: Math.floor(at[0]), y: Math.floor(at[1]) }]));
    set(this.node, "frame", this.frame);
    this.found = this.follow();
    this.paint();
  }

  /** [frame][rank] matches, each a place and how alike it is: from frame to frame it is the best match that is followed. */
  follow() {
    const found = [], { frame, place } = this.from;
    found[frame] = [{ place }];
    const next = (matches) => matches[0]?.place ?? -1;
    for (let f = frame + 1, at = place; f < this.count; f++) at = next((found[f] = this.matches("forward", f - 1, at)));
    for (let f = frame - 1, at = place; f >= 0; f--) at = next((found[f] = this.matches("backward", f, at)));
    return found;
  }

  /** The matches of a place in a table, best first. A place is red + 256 green + 65536 blue, a cosine a gray. */
  matches(name, table, place) {
    const places = this.row(name, table, place), alike = this.row(`alike_${name}`, table, place);
    return places
      .map(([red, green, blue], i) => ({ place: red + 256 * green + 65536 * blue, alike: alike[i] && (2 * alike[i][0]) / 255 - 1 }))
      .filter((match) => match.place !== LOST);
  }

  /** The K pixels of a place in a table, which is a picture of numbers. */
  row(name, table, place) {
    const image = this.clips[name]?.[table];
    if (place < 0 || !image?.naturalWidth) return [];
    image.numbers ??= pixelsOf(image).data;
    return Array.from({ length: this.k }, (_, i) => image.numbers.subarray(4 * (place * this.k + i), 4 * (place * this.k + i) + 3));
  }

  draw(context) {
    const image = this.at("clip");
    if (!image) return;
    const box = this.box(image), [h, w] = this.grid;
    this.put(context, image, box);
    const matches = this.found?.[this.frame] ?? [], start = this.frame === this.from?.frame;
    const color = (rank) => (start ? "#f13" : RANKS[rank % RANKS.length]);
    [...matches.entries()].reverse().forEach(([rank, { place }]) => {
      Object.assign(context, { lineWidth: 2, strokeStyle: color(rank) });
      const [x, y] = [(place % w) / w, Math.floor(place / w) / h];
      context.strokeRect(box.x + x * box.w, box.y + y * box.h, box.w / w, box.h / h);
    });
    if (this.found && !matches.length) this.say(context, "lost here");
    this.similarity = matches.map(({ alike }) => (alike === undefined ? "" : alike.toFixed(2)));
    if (!start) this.similarity.forEach((text, rank) => text && write(context, text, 4 + 40 * rank, 16, color(rank)));
  }
}

forNodes(app, "matches", "WeftPreviewCorrespondence", (node) => new Matches(node));
