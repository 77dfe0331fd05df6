// The browser half of the build and of the browser tests: opens ComfyUI's real frontend and does jobs there.
// stdin, a JSON a line: first {url, chromium, vue: for each page to open, whether nodes are elements of the page (Vue) or
// the canvas', sharp: whether for pictures}, then jobs, each done in all pages, or in the one whose number is its `only`:
//   {build: columns of graphs.py} -> {workflow, api}
//   {drop: workflow, name} -> {missing, api, overlaps, spilled, bytes}
//   {run: {input: value}} -> {overlaps, spilled, bytes}: of what was dropped last, with these values, by its Run button
//   {act: [[verb, ...], ...]} -> {seen: what each "read" saw}: by mouse and keys on a node's widget, see VERBS
//   {help: type of a node in the graph} -> {text, missed: what was asked for and is not there, wide: what sticks out,
//     pictures: their widths}
//   {picture: title of a node, or null for the graph, path} -> null: a screenshot of it
//   {screenshot: path} -> null: the whole graph
//   {errors: true} -> what the page complained of so far: [{text, from}]
// stdout, a line each: {answers: one a page}, in the order of the jobs, or {error}; the first says that all are open.
// long because: all that runs in the page has to stand in one file, and each job is a few lines of it.
const { chromium } = require("playwright-core");
const { createInterface } = require("readline");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const SETTINGS = { "Comfy.TutorialCompleted": true, "Comfy.Locale": "en", "Comfy.UseNewMenu": "Top" }; // whatever the user has
const BARE = { "Comfy.Minimap.Visible": false, "Comfy.Graph.CanvasMenu": false }; // nothing lies over a picture

// Runs in the page. Widgets, slots and heights are the frontend's own; we choose only titles, values and columns.
// Room is left for what a node becomes: with its pictures, and as a Vue node, which is taller in every frontend.
async function build(columns) {
  const WIDTH = 400, GAP = 40, EDGE = 36, TITLE = LiteGraph.NODE_TITLE_HEIGHT, LEFT = 120, TOP = 200, SCALE = 0.6;
  const TEXTS = { MarkdownNote: 440, WeftEncodePrompt: 160, PreviewAny: 240 };
  const PICTURE = 300; // what a picture, shown in the end or while it runs, adds at most
  const PICTURES = {
    LoadVideo: 1, SaveVideo: 1, WeftPreviewWords: 1, PreviewImage: 1, WeftSAMMask: 1, WeftTextToBoxes: 1, WeftEditCandidates: 1,
    WeftTestTimeAdaptation: 1, WeftPreviewCorrespondence: 1, WeftPreviewSTRScore: 1, WeftEditSampler: 1,
    WeftCoupledEdit: 1, WeftTrackMask: 2, // both
  };
  const asVue = (node) => {
    const slots = Math.max(node.inputs?.filter((i) => !i.widget).length ?? 0, (node.outputs?.length ?? 0) + 2);
    const tall = (w) => ["customtext", "MARKDOWN"].includes(w.type) || w.options?.multiline;
    const height = (w) => w.options?.getMinHeight?.() + 12 || (tall(w) ? 70 : 38);
    return 90 + 28 * slots + (node.widgets ?? []).reduce((sum, w) => sum + height(w), 0);
  };
  const app = window.app;
  app.graph.clear();
  const nodes = {};
  let x = LEFT;
  for (const [heading, column] of Object.entries(columns)) {
    let y = TOP;
    for (const [title, { type, inputs }] of Object.entries(column)) {
      const node = LiteGraph.createNode(type);
      if (!node) throw new Error(`the server has no node ${type}`);
      if (nodes[title]) throw new Error(`two nodes are titled ${title}`);
      Object.assign(node, { title, pos: [x, y] });
      app.graph.add(node);
      for (const [name, value] of Object.entries(inputs)) {
        if (value?.title) continue;
        const widget = node.widgets.find((w) => w.name === name);
        if (!widget) throw new Error(`${type} has no widget ${name}`);
        widget.value = value;
      }
      const pictures = PICTURE * (PICTURES[type] ?? 0);
      node.setSize([WIDTH, Math.max(node.computeSize()[1] + Math.min(pictures, PICTURE), TEXTS[type] ?? 0)]);
      nodes[title] = node;
      y += Math.max(node.size[1], asVue(node) + pictures) + TITLE + GAP;
    }
    const group = new LiteGraph.LGraphGroup(heading);
    group.pos = [x - EDGE, TOP - TITLE - GAP - 20];
    group.size = [WIDTH + 2 * EDGE, y - TOP + GAP + 10];
    app.graph.add(group);
    x += WIDTH + 2 * EDGE + 20;
  }
  for (const column of Object.values(columns))
    for (const [title, { inputs }] of Object.entries(column))
      for (const [name, value] of Object.entries(inputs)) {
        if (!value?.title) continue;
        const from = nodes[value.title], to = nodes[title];
        const output = value.output ? from.outputs.findIndex((o) => o.name === value.output) : 0;
        const input = to.inputs.findIndex((i) => i.name === name);
        if (!from.connect(output, to, input)) throw new Error(`cannot connect ${value.title} to ${title}.${name}`);
      }
  const { workflow, output } = await app.graphToPrompt();
  // It opens with its first columns in view, below the page's bars.
  workflow.extra = { ...workflow.extra, ds: { scale: SCALE, offset: [40, 60] } };
  return { workflow, api: output };
}

async function drop(page, { drop: workflow, name }) {
  await page.evaluate(() => window.app.graph.clear());
  const data = await page.evaluateHandle(
    ([text, name]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([text], name, { type: "application/json" }));
      return transfer;
    },
    [JSON.stringify(workflow), `${name}.json`],
  );
  await page.dispatchEvent("#graph-canvas", "dragover", { dataTransfer: data });
  await page.dispatchEvent("#graph-canvas", "drop", { dataTransfer: data });
  await page.waitForFunction((n) => window.app.graph._nodes.length === n, workflow.nodes.length, { timeout: 240000 });
  const opened = await page.evaluate(async () => {
    const nodes = window.app.graph._nodes;
    const missing = nodes.filter((n) => !(n.type in LiteGraph.registered_node_types)).map((n) => n.type);
    const { workflow, output } = await window.app.graphToPrompt();
    return { missing, api: output, bytes: JSON.stringify(workflow).length };
  });
  return { ...opened, ...(await settled(page)) };
}

async function run(page, { run: values }) {
  await page.evaluate((values) => {
    for (const node of window.app.graph._nodes)
      for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
  }, values);
  const button = page.locator('[data-testid="queue-button"]').first();
  // A fading mask may lie over it.
  await finished(page, () => button.evaluate((e) => (e.querySelector("button") ?? e).click()));
  const bytes = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()).length);
  return { bytes, ...(await settled(page)) };
}

// Waits for the end of a run that `start` begins.
async function finished(page, start) {
  await page.evaluate(() => {
    window.weftEnd = new Promise((done) => {
      const { api } = window.comfyAPI.api;
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        api.addEventListener(kind, (e) => done([kind, e.detail]), { once: true });
    });
  });
  const queued = page.waitForResponse((r) => r.url().endsWith("/prompt") && r.request().method() === "POST", { timeout: 240000 });
  await start();
  const answer = await queued;
  if (!answer.ok()) throw new Error(`refused: ${await answer.text()}`);
  const [kind, detail] = await page.evaluate(() => window.weftEnd);
  if (kind !== "execution_success") throw new Error(`${kind}: ${detail.node_type}: ${detail.exception_message}`);
}

// What `act` can do; places are shares of the canvas in the widget of the node with that title.
const VERBS = {
  view,
  click: async (page, title, x, y) => page.mouse.click(...(await placeOf(page, title, x, y))),
  shiftClick: async (page, title, x, y) => {
    await page.keyboard.down("Shift");
    await page.mouse.click(...(await placeOf(page, title, x, y)));
    await page.keyboard.up("Shift");
  },
  drag: async (page, title, x, y, x2, y2) => {
    await page.mouse.move(...(await placeOf(page, title, x, y)));
    await page.mouse.down();
    await page.mouse.move(...(await placeOf(page, title, x2, y2)), { steps: 5 });
    await page.mouse.up();
  },
  press: async (page, title, selector, x = 0.5, y = 0.5) => page.mouse.click(...(await placeOf(page, title, x, y, selector))),
  wheel: async (page, title, turned) => {
    await page.mouse.move(...(await placeOf(page, title, 0.5, 0.5)));
    await page.mouse.wheel(0, turned);
  },
  key: (page, key) => page.keyboard.press(key),
  clickRun: async (page, title, x, y) => {
    const place = await placeOf(page, title, x, y);
    await finished(page, () => page.mouse.click(...place));
  },
  run: (page) => finished(page, () => page.evaluate(() => void window.app.queuePrompt(0, 1))),
  runBy: (page, key) => finished(page, () => page.keyboard.press(key)),
  until: (page, expression) => page.waitForFunction(expression, null, { timeout: 240000 }),
  wait: (page, seconds) => page.waitForTimeout(1000 * seconds),
  reopen: (page) => page.evaluate(() => window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize())))),
  read: (page, expression) => page.evaluate(expression),
};

async function act(page, { act: steps }) {
  const seen = [];
  for (const [verb, ...given] of steps) {
    const saw = await VERBS[verb](page, ...given);
    if (verb === "read") seen.push(saw);
  }
  return { seen };
}

async function view(page, title) {
  await page.evaluate((title) => {
    const { graph, canvas } = window.app, node = graph._nodes.find((n) => n.title === title);
    Object.assign(canvas.ds, { scale: 0.8, offset: [300 - node.pos[0], 200 - node.pos[1]] });
    canvas.setDirty(true, true);
  }, title);
  await page.waitForTimeout(400); // until the widget has followed
}

// A point of the page, once the element stands still and nothing lies over it there: a page under load moves late.
async function placeOf(page, title, x, y, selector = "canvas") {
  await view(page, title);
  const look = ([title, selector, x, y]) => {
    const node = window.app.graph._nodes.find((n) => n.title === title);
    const element = node.widgets.find((w) => w.name === "weft_view").element.querySelector(selector);
    const { left, top, width, height } = element.getBoundingClientRect(), at = [left + x * width, top + y * height];
    const hit = document.elementFromPoint(...at);
    return { at, over: hit === element ? "" : `${hit?.tagName}.${hit?.className}` };
  };
  let seen;
  for (let calm = 0, tries = 0; calm < 3; tries++) {
    const now = await page.evaluate(look, [title, selector, x, y]);
    if (tries === 300) throw new Error(`${selector} of ${title} cannot be reached: ${now.over || "nothing"} lies over it`);
    calm = !now.over && String(now.at) === String(seen?.at) ? calm + 1 : 0;
    seen = now;
    await page.waitForTimeout(100);
  }
  return seen.at;
}

// What overlaps once nothing grows or loads any more, for half a second.
async function settled(page) {
  let last, now = {};
  for (let calm = 0; calm < 5; calm = now === last && !page.loading.size ? calm + 1 : 0) {
    last = now;
    await page.waitForTimeout(100);
    now = JSON.stringify(await page.evaluate(overlaps));
  }
  const { overlaps: found, spilled } = JSON.parse(now);
  return { overlaps: found, spilled };
}

// Runs in the page: pairs of nodes that lie over each other, and nodes that reach out of their group.
function overlaps() {
  const TITLE = LiteGraph.NODE_TITLE_HEIGHT, { graph } = window.app;
  const boxes = graph._nodes.map((n) => {
    const height = document.querySelector(`[data-node-id="${n.id}"]`)?.offsetHeight ?? 0;
    return { title: n.title, x: n.pos[0], y: n.pos[1] - TITLE, w: n.size[0], h: Math.max(n.size[1] + TITLE, height) };
  });
  const meet = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
  const within = (a, [x, y, w, h]) => a.x >= x && a.y >= y && a.x + a.w <= x + w && a.y + a.h <= y + h;
  const groups = graph._groups.map((g) => [...g.pos, ...g.size]);
  const films = [...document.querySelectorAll("video")].filter((v) => v.src && !v.error && !v.readyState).length;
  return {
    boxes, films, // for `settled`
    overlaps: boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)).map((b) => `${a.title} / ${b.title}`)),
    spilled: boxes.filter((a) => !groups.some((g) => within(a, g))).map((a) => a.title),
  };
}

async function help(page, { help: type }) {
  const button = page.locator('[data-testid="info-button"]');
  for (let attempt = 0; !(await button.count()); attempt++) {
    if (attempt === 10) throw new Error(`selecting ${type} does not bring up the toolbox`);
    const [x, y] = await page.evaluate(titleOf, type);
    await page.mouse.click(x, y); // only a real click brings it up, and only once the canvas has settled
    await page.waitForTimeout(1000);
  }
  await button.dispatchEvent("click");
  const text = page.locator(".node-help-content");
  await text.locator("h1").waitFor({ timeout: 240000 }); // the panel opens empty
  await page.waitForFunction(() => [...document.querySelectorAll(".node-help-content img")].every((i) => i.complete));
  const wide = await text.evaluate((e) => {
    const right = (each) => each.getBoundingClientRect().right;
    return [...e.querySelectorAll("*")].filter((each) => right(each) > right(e) + 1).map((each) => each.textContent);
  });
  const pictures = await text.locator("img").evaluateAll((found) => found.map((i) => i.naturalWidth));
  const missed = page.complaints.map((c) => c.from ?? "").filter((from) => from.includes("/docs/"));
  return { text: await text.innerText(), missed, wide, pictures };
}

async function picture(page, { picture: title, path }) {
  const box = await page.evaluate(framed, title);
  await page.waitForTimeout(1500); // until widgets have followed, and pictures have come
  const { left, top } = await page.locator("#graph-canvas").evaluate((e) => e.getBoundingClientRect().toJSON());
  await page.screenshot({ path, clip: { ...box, x: left + box.x, y: top + box.y } });
  return null;
}

// Runs in the page: brings a node, as narrow as a help page, or the whole graph into view, and says where that is.
function framed(title) {
  const NARROW = 330, RIM = 10, SHOWN = 200, X = 150, Y = 150, TITLE = LiteGraph.NODE_TITLE_HEIGHT;
  const { graph, canvas } = window.app, nodes = graph._nodes;
  canvas.deselectAll?.();
  if (title === null) {
    const [width, height] = [1400, 700], ends = (i) => nodes.map((n) => n.pos[i] + n.size[i]);
    const [left, top] = [0, 1].map((i) => Math.min(...nodes.map((n) => n.pos[i])) - 80);
    const scale = Math.min(width / (Math.max(...ends(0)) + 80 - left), height / (Math.max(...ends(1)) + 80 - top));
    Object.assign(canvas.ds, { scale, offset: [X / scale - left, Y / scale - top] });
    canvas.setDirty(true, true);
    return { x: X, y: Y, width, height };
  }
  const node = nodes.find((n) => n.title === title);
  for (const group of [...graph._groups]) graph.remove(group);
  node.setSize([NARROW, node.computeSize()[1] + (node.imgs?.length ? SHOWN : 0)]);
  Object.assign(canvas.ds, { scale: 1, offset: [X - node.pos[0], Y - node.pos[1]] });
  canvas.setDirty(true, true);
  return { x: X - RIM, y: Y - TITLE - RIM, width: NARROW + 2 * RIM, height: node.size[1] + TITLE + 2 * RIM };
}

// Runs in the page: brings a node of this type into view and says where its title is.
function titleOf(type) {
  const { graph, canvas } = window.app;
  const node = graph._nodes.find((n) => n.type === type);
  canvas.ds.scale = 1;
  canvas.centerOnNode(node);
  const { left, top } = canvas.canvas.getBoundingClientRect();
  const [x, y] = canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 15]);
  return [left + x, top + y];
}

async function screenshot(page, { screenshot: path }) {
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(1500);
  await page.screenshot({ path });
  return null;
}

const JOBS = { drop, run, act, help, picture, screenshot, build: (page, job) => page.evaluate(build, job.build), errors: (page) => page.complaints };
const ONE_BY_ONE = ["run", "act"]; // the second page's run is answered from what the first's has left

async function answers(all, job) {
  const pages = job.only === undefined ? all : [all[job.only]];
  const kind = Object.keys(JOBS).find((name) => name in job);
  if (!ONE_BY_ONE.includes(kind)) return Promise.all(pages.map((page) => JOBS[kind](page, job)));
  const found = [];
  for (const page of pages) found.push(await JOBS[kind](page, job));
  return found;
}

async function open(browser, url, vue, sharp) {
  // Without animations, which a machine that has no GPU draws dearly.
  const shape = { reducedMotion: "reduce", viewport: { width: 1600, height: sharp ? 1300 : 950 }, deviceScaleFactor: sharp ? 2 : 1 };
  const context = await browser.newContext(shape); // a window of its own
  const page = await context.newPage();
  Object.assign(page, { complaints: [], loading: new Set() });
  const complain = (text, from) => page.complaints.push({ text, from });
  page.on("console", (message) => message.type() === "error" && complain(message.text(), message.location().url));
  page.on("pageerror", (error) => complain(error.message, error.stack));
  page.on("request", (request) => request.resourceType() === "image" && page.loading.add(request));
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => page.loading.delete(request));
  const settings = { ...SETTINGS, ...(sharp ? BARE : {}), "Comfy.VueNodes.Enabled": vue };
  await page.route("**/api/settings", (route) =>
    route.request().method() === "GET" ? route.fulfill({ json: settings }) : route.fulfill({ json: {} }),
  );
  await page.goto(url, { waitUntil: "domcontentloaded", timeout: 240000 });
  const ready = () => window.app?.graph && window.app.extensionManager && LiteGraph.registered_node_types.LoadVideo;
  await page.waitForFunction(ready, null, { timeout: 240000 });
  return page;
}

async function main() {
  const say = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const { url, chromium: executablePath, vue, sharp } = JSON.parse((await lines.next()).value);
  const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
  try {
    const pages = await Promise.all(vue.map((each) => open(browser, url, each, sharp)));
    say({ answers: [] });
    for await (const line of lines) {
      try {
        say({ answers: await answers(pages, JSON.parse(line)) });
      } catch (error) {
        say({ error: error.message });
      }
    }
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
