// Track Mask: each mask as it is found, and in the end the clip with them all.
import { app } from "../../scripts/app.js";
import { Player, forNodes, whileRunning } from "./weft/player.js";

class Track extends Player {
  constructor(node) {
    super(node, { height: 200, hint: "Masks stand here as they are found." });
    whileRunning(node, ({ done, frames }) => {
      if (done <= 1) this.clips = {};
      frames.forEach((frame) => this.add("clip", frame));
    });
  }

  told(message) {
    this.frame = 0;
    this.show({ clip: message.weft_clip });
  }
}

forNodes(app, "track", "WeftTrackMask", (node) => new Track(node));
