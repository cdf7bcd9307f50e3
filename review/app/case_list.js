// The list of cases. Rows are kept by transaction id and only what changed is written, so nothing
// flickers, a tick stays with its case, and a click means the case that was seen. All values go in
// as text, never as HTML.

const COLUMNS = [
  ["tick", ""], ["risk", "Risk"], ["amount", "Amount"], ["loss", "Expected loss"],
  ["decision", "Decision"], ["place", "Where"], ["customer", "Customer"], ["terminal", "Terminal"],
  ["why", "Why"], ["likeness", "Alike"], ["age", "Flagged"], ["state", "State"],
];
const NUMBERS = new Set(["amount", "loss", "likeness", "age"]);

function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function isDark(element) {
  const host = element.host ?? element;
  const parts = getComputedStyle(host).getPropertyValue("--st-background-color").trim();
  const probe = document.createElement("span");
  probe.style.color = parts;
  document.body.appendChild(probe);
  const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
  probe.remove();
  return 0.3 * r + 0.6 * g + 0.1 * b < 128;
}

function put(cell, text, title) {
  if (cell.textContent !== text) cell.textContent = text;
  if (title !== undefined && cell.title !== title) cell.title = title;
}

function pill(cell, kind, text) {
  let inner = cell.firstElementChild;
  if (!inner) inner = cell.appendChild(document.createElement("span"));
  inner.className = `pill ${kind}`;
  put(inner, text, text);
}

class CaseList {
  constructor(parent) {
    this.parent = parent;
    this.rows = new Map();
    this.ticked = new Set();
    this.at = null;
    this.box = parent.appendChild(document.createElement("div"));
    this.table = this.box.appendChild(document.createElement("table"));
    this.head = this.table.createTHead().insertRow();
    this.body = this.table.createTBody();
    this.none = this.box.appendChild(document.createElement("div"));
    this.none.className = "none";
    this.none.textContent = "No case here.";
    this.onKey = (event) => this.key(event);
    document.addEventListener("keydown", this.onKey);
    this.timer = setInterval(() => this.tellAges(), 1000);
  }

  close() {
    document.removeEventListener("keydown", this.onKey);
    clearInterval(this.timer);
  }

  shown() {
    const { selectable, likeness } = this.data;
    return COLUMNS.filter(([name]) =>
      name === "tick" ? selectable : name === "likeness" ? likeness : true);
  }

  update(component) {
    const { data, setStateValue, setTriggerValue } = component;
    const first = this.data === undefined;
    const other = first || data.selectable !== this.data.selectable;
    // Rows that another filter or order brings are not new.
    const same = !first && data.question === this.data.question;
    this.offset_ms = Date.now() - data.now_ms;
    if (!first && data.generation !== this.data.generation) this.ticked.clear();
    this.data = data;
    this.tellTicked = () => setStateValue("selected", [...this.ticked]);
    this.open = (id) => setTriggerValue("opened", id);
    const dark = isDark(this.parent) ? " dark" : "";
    this.box.className = `cases${dark}${data.selectable ? "" : " compact"}${data.likeness ? " alike" : ""}`;
    if (other) this.writeHead();
    put(this.headOf.age, data.payments ? "When" : "Flagged");
    this.writeBody(same && data.live);
    this.none.hidden = data.rows.length > 0;
    this.table.hidden = data.rows.length === 0;
  }

  writeHead() {
    this.head.replaceChildren();
    this.headOf = {};
    for (const [name, title] of this.shown()) {
      const cell = this.head.appendChild(document.createElement("th"));
      cell.className = name + (NUMBERS.has(name) ? " num" : "");
      cell.scope = "col";
      this.headOf[name] = cell;
      if (name === "tick") {
        this.all = cell.appendChild(document.createElement("input"));
        this.all.type = "checkbox";
        this.all.ariaLabel = "Select all";
        this.all.onchange = () => {
          for (const row of this.data.rows)
            this.all.checked ? this.ticked.add(row.id) : this.ticked.delete(row.id);
          this.showTicked();
          this.tellTicked();
        };
      } else cell.textContent = title;
    }
  }

  writeBody(mark) {
    const gone = this.removeGone();
    let place = this.body.firstElementChild;
    for (const row of this.data.rows) {
      let line = this.rows.get(row.id);
      if (!line) {
        line = this.newLine(row.id);
        if (mark) line.classList.add("fresh");
      }
      if (line === place) place = place.nextElementSibling;
      else this.body.insertBefore(line, place);
      this.writeLine(line, row);
    }
    this.showTicked();
    if (gone) this.tellTicked();
  }

  // First of all: a line that is put elsewhere flashes again, and those below a gap need not move.
  removeGone() {
    const here = new Set(this.data.rows.map((row) => row.id));
    let gone = false;
    for (const [id, line] of this.rows)
      if (!here.has(id)) {
        line.remove();
        this.rows.delete(id);
        gone = this.ticked.delete(id) || gone;
        if (this.at === id) this.at = null;
      }
    return gone;
  }

  newLine(id) {
    const line = document.createElement("tr");
    line.dataset.id = id;
    line.cells_ = {};
    for (const [name] of this.shown()) {
      const cell = line.insertCell();
      cell.className = name + (NUMBERS.has(name) ? " num" : "");
      line.cells_[name] = cell;
      if (name === "customer" || name === "terminal") cell.classList.add("ids");
      if (name === "amount") cell.classList.add("strong");
      if (name === "tick") {
        const box = cell.appendChild(document.createElement("input"));
        box.type = "checkbox";
        box.ariaLabel = `Select ${id}`;
        cell.onclick = (event) => {
          event.stopPropagation();
          if (event.target !== box) box.checked = !box.checked;
          this.tick(id, box.checked);
        };
      }
    }
    line.onanimationend = () => line.classList.remove("fresh");
    line.onclick = () => { if (!line.plain) this.open(id); };
    this.rows.set(id, line);
    return line;
  }

  writeLine(line, row) {
    const cells = line.cells_;
    line.flaggedAt = row.flagged_at_ms;
    line.plain = row.plain;
    line.classList.toggle("plain", row.plain);
    line.classList.toggle("current", row.id === this.data.current);
    if (!cells.risk.firstElementChild) {
      const bar = cells.risk.appendChild(document.createElement("span"));
      bar.className = "bar";
      bar.appendChild(document.createElement("i"));
      cells.risk.appendChild(document.createElement("span"));
    }
    const [bar, number] = cells.risk.children;
    bar.hidden = row.score === null;
    bar.classList.toggle("high", row.decision === "decline");
    bar.firstElementChild.style.width = `${100 * (row.score ?? 0)}%`;
    put(number, row.score === null ? row.source : `${Math.round(100 * row.score)}%`);
    put(cells.amount, row.amount, row.amount);
    put(cells.loss, row.loss);
    pill(cells.decision, row.decision, row.decision === "decline" ? "declined" : row.decision);
    put(cells.place, row.place, row.place);
    put(cells.customer, row.customer, row.customer);
    put(cells.terminal, row.terminal, row.terminal);
    put(cells.why, row.why, row.why);
    if (cells.likeness) put(cells.likeness, `${Math.round(100 * row.likeness)}%`);
    pill(cells.state, row.kind, row.state);
    this.tellAge(line);
  }

  tellAge(line) {
    const now = Date.now() - this.offset_ms;
    put(line.cells_.age, age((now - line.flaggedAt) / 1000), new Date(line.flaggedAt).toLocaleString());
  }

  tellAges() {
    for (const line of this.rows.values()) this.tellAge(line);
  }

  tick(id, on) {
    on ? this.ticked.add(id) : this.ticked.delete(id);
    this.showTicked();
    this.tellTicked();
  }

  showTicked() {
    for (const [id, line] of this.rows) {
      line.classList.toggle("ticked", this.ticked.has(id));
      line.classList.toggle("at", id === this.at);
      const box = line.cells_.tick?.firstElementChild;
      if (box) box.checked = this.ticked.has(id);
    }
    if (this.all) {
      this.all.checked = this.ticked.size > 0 && this.ticked.size === this.rows.size;
      this.all.indeterminate = this.ticked.size > 0 && !this.all.checked;
    }
  }

  key(event) {
    if (!this.data?.selectable || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.composedPath()[0];
    const writes = ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);
    if (target.isContentEditable || (writes && target.type !== "checkbox")) return;
    const ids = [...this.body.children].map((line) => line.dataset.id);
    const here = ids.indexOf(this.at);
    const key = event.key.toLowerCase();
    if (key === "j" || key === "k") {
      const next = key === "j" ? Math.min(here + 1, ids.length - 1) : Math.max(here - 1, 0);
      this.at = ids[next] ?? null;
      this.showTicked();
      this.rows.get(this.at)?.scrollIntoView({ block: "nearest" });
    } else if (here >= 0 && key === "x") this.tick(this.at, !this.ticked.has(this.at));
    else if (here >= 0 && key === "enter" && target.tagName !== "BUTTON") this.open(this.at);
    else return;
    event.preventDefault();
  }
}

const lists = new WeakMap();

export default function (component) {
  const { parentElement } = component;
  let list = lists.get(parentElement);
  if (!list) {
    list = new CaseList(parentElement);
    lists.set(parentElement, list);
  }
  list.update(component);
  return () => {
    list.close();
    list.box.remove();
    lists.delete(parentElement);
  };
}
