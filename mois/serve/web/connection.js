// Whether the server answers. When it ended, the page says so, and goes on by itself when it is back.

import { Gone, getJson } from "./server.js";

const WATCH_MS = 2000;
const GONE_MS = 700; // between two tries while the server is gone
const PATIENCE_MS = 10_000; // a server that is silent for longer is taken for gone

export class Connection {
  // on: {pulse(answer), back(answer)}; banner: what the page shows while the server is gone
  constructor(banner, on) {
    this.banner = banner;
    this.on = on;
  }

  get isGone() {
    return !this.banner.hidden;
  }

  // returns whether an error means that the server is gone
  notes(error) {
    if (error instanceof Gone) this.banner.hidden = false;
    return error instanceof Gone;
  }

  async watch() {
    for (;;) {
      await new Promise((wake) => setTimeout(wake, this.isGone ? GONE_MS : WATCH_MS));
      try {
        const answer = await getJson("pulse", { signal: AbortSignal.timeout(PATIENCE_MS) });
        if (this.isGone) {
          await this.on.back(answer);
          this.banner.hidden = true;
        } else await this.on.pulse(answer);
      } catch (error) {
        this.notes(error);
      }
    }
  }
}
