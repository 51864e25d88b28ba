// @ts-check
// What Python's operators, built-ins and a few functions of its standard library do, for code that
// `peftbook.views.site.javascript` makes. Lists and tuples are arrays, numbers are numbers, the rest has classes here.
const py = (() => {
"use strict";

/** @typedef {any} Any the values of a language without types of its own */

class ValueError extends Error {}

/** A whole number that a JSON text writes with a point: no int to Python. */
class Float extends Number {}

const ID = Symbol("id"); // of a tuple; it has none before it is asked for

/** What tells apart keys of dictionaries: strings and numbers are their own, tuples and data classes by their parts. @param {Any} value @returns {Any} */
function id(value) {
  if (Array.isArray(value)) return /** @type {Any} */ (value)[ID] ??= named(value);
  if (value instanceof Data) return /** @type {Any} */ (value)[ID] ??= `${value.constructor.name}(${value.$fields().map((/** @type {string} */ name) => part(value[name])).join()})`;
  return value;
}

/** @param {Any} value @returns {string} */
function part(value) { return typeof value === "string" ? `${value.length}:${value}` : String(id(value)); }

/** @param {Any[]} value */
function named(value) {
  let text = "(";
  for (const one of value) text += `${part(one)},`;
  return text;
}

class Dict {
  /** @param {Any} [pairs] */
  constructor(pairs) {
    /** @type {Map<Any, [Any, Any]>} */
    this.$map = new Map();
    if (pairs) for (const [key, value] of items(pairs)) this.$set(key, value);
  }
  /** @param {Any} key @param {Any} value */
  $set(key, value) {
    const known = id(key), there = this.$map.get(known);
    if (there) there[1] = value;
    else this.$map.set(known, [key, value]);
  }
  /** @param {Any} key @returns {Any} */
  $get(key) {
    const there = this.$map.get(id(key));
    return there ? there[1] : this.$missing(key);
  }
  /** @param {Any} key @returns {Any} */
  $missing(key) { throw new Error(`KeyError: ${repr(key)}`); }
  /** @param {Any} key */
  $has(key) { return this.$map.has(id(key)); }
  get $size() { return this.$map.size; }
  /** @returns {this} */
  copy() {
    const made = Object.create(Object.getPrototypeOf(this));
    made.$map = new Map();
    made.$new = /** @type {Any} */ (this).$new;
    for (const [key, pair] of this.$map) made.$map.set(key, [...pair]);
    return made;
  }
  items() { return [...this.$map.values()].map(([key, value]) => [key, value]); }
  keys() { return new PySet([...this.$map.values()].map(([key]) => key)); }
  values() { return [...this.$map.values()].map(([, value]) => value); }
  /** @param {Any} key @param {Any} other @returns {Any} */
  get(key, other = null) {
    const there = this.$map.get(id(key));
    return there ? there[1] : other;
  }
  /** @param {Any} key @param {Any} value @returns {Any} */
  setdefault(key, value) {
    if (!this.$has(key)) this.$set(key, value);
    return this.$get(key);
  }
  /** @param {Any} key @param {Any} other @returns {Any} */
  pop(key, other) {
    if (!this.$has(key) && other !== undefined) return other;
    const value = this.$get(key);
    this.$map.delete(id(key));
    return value;
  }
  *[Symbol.iterator]() { for (const [key] of this.$map.values()) yield key; }
}

class DefaultDict extends Dict {
  /** @param {() => Any} make */
  constructor(make) {
    super();
    this.$new = make;
  }
  /** @param {Any} key @returns {Any} */
  $missing(key) {
    const value = this.$new();
    this.$set(key, value);
    return value;
  }
}

class Counter extends Dict {
  /** @param {Any} [counted] */
  constructor(counted = []) {
    super(counted instanceof Dict ? counted : undefined);
    if (!(counted instanceof Dict)) for (const one of iter(counted)) this.$set(one, this.$get(one) + 1);
  }
  $missing() { return 0; }
  /** The sums that are above 0. @param {Any} other */
  __add__(other) {
    const total = new Counter();
    for (const key of this) if (this.$get(key) + other.$get(key) > 0) total.$set(key, this.$get(key) + other.$get(key));
    for (const key of other) if (!this.$has(key) && other.$get(key) > 0) total.$set(key, other.$get(key));
    return total;
  }
}

class PySet {
  /** @param {Any} [values] */
  constructor(values = []) {
    /** @type {Map<Any, Any>} */
    this.$map = new Map();
    for (const value of iter(values)) this.add(value);
  }
  /** @param {Any} value */
  add(value) { this.$map.set(id(value), value); }
  /** @param {Any} value */
  $has(value) { return this.$map.has(id(value)); }
  get $size() { return this.$map.size; }
  *[Symbol.iterator]() { yield* this.$map.values(); }
}

/** An instance of a data class. */
class Data {
  /** @returns {string[]} */
  $fields() { return []; }
}

/** Moments by columns: what of numpy's arrays is used. A product with factors of the columns is not written out. */
class Table {
  /** @param {number} rows @param {number} columns @param {Float64Array} [numbers] @param {number[]} [factors] */
  constructor(rows, columns, numbers = new Float64Array(rows * columns), factors = Array.from({ length: columns }, () => 1)) {
    this.rows = rows;
    this.columns = columns;
    this.numbers = numbers;
    this.factors = factors;
  }
  /** @param {number} row */
  row(row) { return this.factors.map((factor, column) => factor * this.numbers[row * this.columns + column]); }
  /** @param {number[]} factors */
  times(factors) { return new Table(this.rows, this.columns, this.numbers, this.factors.map((each, column) => each * factors[column])); }
  cumsum() {
    const numbers = this.numbers.slice();
    for (let at = this.columns; at < numbers.length; at += 1) numbers[at] += numbers[at - this.columns];
    return new Table(this.rows, this.columns, numbers, this.factors);
  }
  /** @param {number} rows how many are left out at the end, below 0 */
  slice(rows) { return new Table(this.rows + rows, this.columns, this.numbers.subarray(0, rows * this.columns), this.factors); }
  sum() {
    const { rows, columns, numbers, factors } = this, sums = new Float64Array(rows);
    for (let row = 0, at = 0; row < rows; row += 1) {
      let sum = 0;
      for (let column = 0; column < columns; column += 1, at += 1) sum += factors[column] * numbers[at];
      sums[row] = sum;
    }
    return { argmax: () => sums.reduce((best, each, at) => (each > sums[best] ? at : best), 0) };
  }
}

// ---- what has parts

/** @param {Any} value @returns {Any} */
function iter(value) {
  if (value == null || typeof value[Symbol.iterator] !== "function") throw new Error(`TypeError: ${repr(value)} has no parts`);
  return value;
}

/** @param {Any} value @returns {[Any, Any][]} */
const items = (value) => (value instanceof Dict ? value.items() : iter(value));

/** @param {Any} value @param {Any} key @returns {Any} */
function item(value, key) {
  if (value instanceof Dict) return value.$get(key);
  if (value instanceof Table) return value.row(key);
  const at = key < 0 ? value.length + key : Number(key);
  if (!(at in Object(value))) throw new Error(`IndexError: ${key}`);
  return value[at] ?? null;
}

/** @param {Any} value @param {Any} key @param {Any} one */
function set(value, key, one) {
  if (value instanceof Dict) value.$set(key, one);
  else if (value instanceof Table) value.numbers[key[0] * value.columns + key[1]] = one;
  else value[key < 0 ? value.length + key : key] = one;
}

/** @param {Any} value @param {Any} key @param {(old: Any) => Any} change */
function update(value, key, change) {
  set(value, key, change(value instanceof Table ? value.numbers[key[0] * value.columns + key[1]] : item(value, key)));
}

/** @param {Any} value @param {number | null} low @param {number | null} high */
function slice(value, low, high) {
  if (value instanceof Table) return value.slice(/** @type {number} */ (high));
  return value.slice(low ?? 0, high ?? undefined);
}

/** @param {Any} value @param {Any} one @returns {boolean} */
function has(value, one) {
  if (typeof value === "string") return value.includes(one);
  if (Array.isArray(value)) return value.some((other) => eq(other, one));
  return value.$has(one);
}

/** @param {Any} value */
function len(value) { return typeof value === "string" ? [...value].length : value.$size ?? value.length; }

// ---- truth, order, arithmetic

/** @param {Any} value */
function bool(value) {
  if (value instanceof Float) return value.valueOf() !== 0;
  return Boolean(value) && (Array.isArray(value) ? value.length > 0 : (value.$size ?? 1) > 0);
}

/** @param {Any} a @param {Any} b @returns {boolean} */
function eq(a, b) {
  if (a === b) return true;
  if (a instanceof Float || b instanceof Float) return Number(a) === Number(b) && typeof a !== "string" && typeof b !== "string";
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((one, at) => eq(one, b[at]));
  if (a instanceof Dict) return b instanceof Dict && a.$size === b.$size && a.items().every(([key, value]) => b.$has(key) && eq(value, b.$get(key)));
  if (a instanceof PySet) return b instanceof PySet && a.$size === b.$size && [...a].every((one) => b.$has(one));
  if (a instanceof Data) return b instanceof Data && a.constructor === b.constructor && a.$fields().every((name) => eq(/** @type {Any} */ (a)[name], /** @type {Any} */ (b)[name]));
  if (typeof a === "boolean" || typeof b === "boolean") return typeof a !== "string" && typeof b !== "string" && a != null && b != null && Number(a) === Number(b);
  return false;
}

/** @param {Any} a @param {Any} b @returns {boolean} */
function lt(a, b) {
  if (!Array.isArray(a)) return typeof a === "string" ? a < b : known(a) < known(b);
  for (let at = 0; at < Math.min(a.length, b.length); at += 1) if (!eq(a[at], b[at])) return lt(a[at], b[at]);
  return a.length < b.length;
}

/** @param {Any} a @param {Any} b @returns {boolean} */
function le(a, b) { return a instanceof PySet ? [...a].every((one) => b.$has(one)) : !lt(b, a); }

/** A number, or an error as in Python. @param {Any} value @returns {number} */
function known(value) {
  if (typeof value === "number") return value;
  if (typeof value === "boolean" || value instanceof Float) return Number(value);
  throw new Error(`TypeError: ${repr(value)} is no number`);
}

/** @param {Any} a @param {Any} b @returns {Any} */
function add(a, b) {
  if (typeof a === "number" && typeof b === "number") return a + b;
  if (typeof a === "string" && typeof b === "string") return a + b;
  if (Array.isArray(a) && Array.isArray(b)) return [...a, ...b];
  if (a && a.__add__) return a.__add__(b);
  return known(a) + known(b);
}

/** @param {Any} a @param {Any} b @returns {Any} */
function mul(a, b) {
  if (typeof a === "number" && typeof b === "number") return a * b;
  if (a instanceof Table) return a.times(b);
  if (typeof b === "string" || Array.isArray(b)) return mul(b, a);
  if (typeof a === "string") return a.repeat(Math.max(0, known(b)));
  if (Array.isArray(a)) return Array.from({ length: Math.max(0, known(b)) }, () => a).flat(1);
  return known(a) * known(b);
}

/** @param {Any} a @param {Any} b @returns {Any} */
function sub(a, b) { return a instanceof PySet ? new PySet([...a].filter((one) => !b.$has(one))) : known(a) - known(b); }

/** @param {Any} a @param {Any} b @returns {Any} */
function or_(a, b) {
  if (a instanceof Dict) return new Dict([...a.items(), ...items(b)]);
  if (a instanceof PySet) return new PySet([...a, ...b]);
  return [a, b].flat(1); // types, as in isinstance(x, int | float)
}

/** @param {Any} a @param {Any} b @returns {Any} */
function ior_(a, b) {
  if (a instanceof Dict) for (const [key, value] of items(b)) a.$set(key, value);
  else for (const one of b) a.add(one);
  return a;
}

/** @param {Any} a @param {Any} b @returns {Any} */
function iadd(a, b) {
  if (!Array.isArray(a) || ID in a) return add(a, b);
  a.push(...iter(b));
  return a;
}

/** Half-way cases to the even neighbour. @param {Any} value */
function round(value) {
  const low = Math.floor(known(value)), apart = value - low;
  return apart < 0.5 || (apart === 0.5 && low % 2 === 0) ? low : low + 1;
}

/** Digits after the point, of the number's exact value, half-way cases to the even digit. @param {number} value @param {number} digits */
function fixed(value, digits) {
  if (Object.is(value, -0)) return `-${fixed(0, digits)}`;
  const text = value.toFixed(digits);
  const exact = Math.abs(value) < 1e15 ? value.toFixed(Math.min(100, digits + 60)) : text, tail = exact.slice(exact.indexOf(".") + 1 + digits);
  if (!/^50*$/.test(tail)) return text;
  const cut = exact.slice(0, exact.length - tail.length).replace(/\.$/, "");
  return /[02468]\.?$/.test(cut) ? cut : text;
}

// ---- text

/** @param {Any} value @returns {string} */
function str(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (value instanceof Float) return Math.abs(Number(value)) < 1e16 ? `${value}.0` : value.toExponential();
  if (typeof value === "number") return value === Infinity ? "inf" : Number.isInteger(value) && Math.abs(value) >= 1e21 ? BigInt(value).toString() : String(value);
  return typeof value === "string" ? value : value instanceof Error ? value.message : repr(value);
}

/** @param {Any} value @returns {string} */
function repr(value) {
  if (typeof value === "string") {
    const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
    const plain = value.replace(/\\/g, "\\\\").replace(/\n/g, "\\n").replace(/\r/g, "\\r").replace(/\t/g, "\\t");
    return quote + (quote === "'" ? plain.replace(/'/g, "\\'") : plain) + quote;
  }
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  if (value instanceof Dict) return `{${value.items().map(([key, one]) => `${repr(key)}: ${repr(one)}`).join(", ")}}`;
  if (value instanceof PySet) return `{${[...value].map(repr).join(", ")}}`;
  return typeof value === "object" && value !== null && !(value instanceof Float) ? `<${value.constructor.name}>` : str(value);
}

/** @param {Any} value @param {string} [spec] */
function format(value, spec = "") {
  if (!spec) return str(value);
  const parts = /^([<>^]?)([+]?)(\d*)(,?)(?:\.(\d+))?([fdg%]?)$/.exec(spec);
  if (!parts || parts[6] === "%" || parts[6] === "g") throw new Error(`ValueError: ${spec} is not translated`);
  const [, side, sign, width, comma, digits, kind] = parts;
  let text = typeof value === "string" ? value : str(value);
  if (typeof value === "number" && (kind === "f" || digits)) text = fixed(value, Number(digits || 6));
  if (comma) text = text.replace(/^(-?)(\d+)/, (_, minus, whole) => minus + whole.replace(/\B(?=(\d{3})+$)/g, ","));
  if (sign && !text.startsWith("-")) text = `+${text}`;
  const room = " ".repeat(Math.max(0, Number(width) - len(text)));
  return (side || (typeof value === "string" ? "<" : ">")) === "<" ? text + room : room + text;
}

/** @type {Record<string, (text: string, ...given: Any) => Any>} */
const OF_TEXT = {
  count: (text, one) => text.split(one).length - 1,
  endswith: (text, end) => [end].flat().some((one) => text.endsWith(one)),
  startswith: (text, start) => [start].flat().some((one) => text.startsWith(one)),
  join: (text, parts) => [...iter(parts)].map((one) => { if (typeof one !== "string") throw new Error(`TypeError: ${repr(one)} is no text`); return one; }).join(text),
  lower: (text) => text.toLowerCase(),
  upper: (text) => text.toUpperCase(),
  strip: (text) => text.trim(),
  removeprefix: (text, start) => (text.startsWith(start) ? text.slice(start.length) : text),
  removesuffix: (text, end) => (end && text.endsWith(end) ? text.slice(0, -end.length) : text),
  replace: (text, one, other) => text.replaceAll(one, other),
  partition: (text, by) => { const at = text.indexOf(by); return at < 0 ? [text, "", ""] : [text.slice(0, at), by, text.slice(at + by.length)]; },
  rpartition: (text, by) => { const at = text.lastIndexOf(by); return at < 0 ? ["", "", text] : [text.slice(0, at), by, text.slice(at + by.length)]; },
  split: (text, by, most) => {
    if (by === undefined) return text.trim().split(/\s+/).filter(Boolean);
    const parts = text.split(by);
    return most === undefined || parts.length <= most ? parts : [...parts.slice(0, most), parts.slice(most).join(by)];
  },
  rsplit: (text, by, most) => {
    const parts = text.split(by), cut = parts.length - most;
    return cut <= 0 ? parts : [parts.slice(0, cut).join(by), ...parts.slice(cut)];
  },
};

/** @type {Record<string, (list: Any[], ...given: Any) => Any>} */
const OF_LIST = {
  append: (list, one) => { list.push(one); return null; },
  extend: (list, more) => { list.push(...iter(more)); return null; },
  count: (list, one) => list.filter((other) => eq(other, one)).length,
  index: (list, one) => { const at = list.findIndex((other) => eq(other, one)); if (at < 0) throw new ValueError(`${repr(one)} is not in list`); return at; },
  pop: (list, at = list.length - 1) => list.splice(at, 1)[0],
};

/** A method by its name, of a text, a list or an object. @param {Any} owner @param {string} name @param {Any} given @returns {Any} */
function call(owner, name, ...given) {
  if (typeof owner === "string") return OF_TEXT[name](owner, ...given);
  if (Array.isArray(owner)) return OF_LIST[name](owner, ...given);
  if (typeof owner === "number" && name === "is_integer") return Number.isInteger(owner);
  return owner[name](...given);
}

/** A method that is not called at once, or another part of an object. @param {Any} owner @param {string} name @returns {Any} */
function attribute(owner, name) {
  if (typeof owner === "string" || Array.isArray(owner)) return (/** @type {Any} */ ...given) => call(owner, name, ...given);
  const value = owner[name];
  return typeof value === "function" && !Object.hasOwn(owner, name) ? value.bind(owner) : value;
}

// ---- functions and classes

/** A function with the names of its arguments. keywords: it gets those that have no place as an object first. @param {Any} made @param {string[]} names @returns {Any} */
function fn(made, names, keywords = false) {
  const called = keywords ? /** @this {Any} */ function (/** @type {Any} */ ...given) { return made.call(this, {}, ...given); } : made;
  called.$names = names;
  called.$keywords = keywords && made;
  return called;
}

/** @param {Any} called @param {Any[]} given @param {Record<string, Any>} keywords @param {Any} owner @returns {Any} */
function kw(called, given, keywords, owner = undefined) {
  const names = called.$names, first = given.length;
  /** @type {Record<string, Any>} */
  const rest = {};
  let others = 0;
  for (const name in keywords) {
    const at = names.indexOf(name);
    if (at >= first) given[at] = keywords[name];
    else {
      rest[name] = keywords[name];
      others += 1;
    }
  }
  if (called.$keywords) return called.$keywords.call(owner, rest, ...given);
  if (others) throw new Error(`TypeError: no argument ${Object.keys(rest).join(", ")}`);
  return called.apply(owner, given);
}

/** @param {Any} owner @param {string} name @param {Any[]} given @param {Record<string, Any>} keywords */
function method(owner, name, given, keywords) { return kw(owner[name], given, keywords, owner); }

/** Results are kept by arguments. @param {Any} made */
function cached(made) {
  const results = new Map();
  return fn((/** @type {Any} */ ...given) => {
    const key = given.length === 1 ? id(given[0]) : named(given);
    if (!results.has(key)) results.set(key, made(...given));
    return results.get(key);
  }, made.$names);
}

/** @param {Any} made */
const contextmanager = (made) => made;
/** @param {Any} context */
const enter = (context) => { context.next(); return context; };
/** @param {Any} context */
const leave = (context) => context.next();

/**
 * A class that is called to make an instance. fields: of a data class, each with a function for its default.
 * @param {string} name @param {Any[]} bases @param {[string, (() => Any)?][] | null} fields @param {[string, string, Any][]} methods
 * @returns {Any}
 */
function class_(name, bases, fields, methods) {
  const above = bases.length ? bases[0].$class ?? bases[0] : fields ? Data : Object;
  const made = { [name]: class extends /** @type {Any} */ (above) {} }[name];
  if (fields) {
    const names = fields.map(([one]) => one);
    made.prototype.$fields = () => names;
  }
  for (const [one, kind, value] of methods) {
    if (kind === "method") made.prototype[one] = value;
    else Object.defineProperty(made.prototype, one, { get: kind === "getter" ? value : kept(one, value) });
  }
  const taken = !fields && [Dict, Error].some((one) => made.prototype instanceof one);
  /** @type {Any} */
  const create = (/** @type {Any} */ ...given) => {
    const one = taken ? new made(...given) : new made();
    if (fields) {
      for (let at = 0; at < fields.length; at += 1) {
        const [field, start] = fields[at], value = given[at] === undefined && start ? start() : given[at];
        if (value === undefined) throw new Error(`TypeError: ${name} lacks ${field}`);
        one[field] = value;
      }
      if (one.__post_init__) one.__post_init__();
    } else if (one.__init__) one.__init__(...given);
    return one;
  };
  create.$class = made;
  create.$fields = fields;
  create.$names = fields ? fields.map(([one]) => one) : made.prototype.__init__ ? made.prototype.__init__.$names : [];
  made.prototype.$create = create;
  return create;
}

/** @param {string} name @param {Any} value */
function kept(name, value) {
  return /** @this {Any} */ function () {
    const result = value.call(this);
    Object.defineProperty(this, name, { value: result });
    return result;
  };
}

/** @param {Any} value @param {Any} kind @returns {boolean} */
function isinstance(value, kind) {
  if (Array.isArray(kind)) return kind.some((one) => isinstance(value, one));
  if (kind === int_) return typeof value === "boolean" || (typeof value === "number" && Number.isInteger(value));
  if (kind === float_) return value instanceof Float || (typeof value === "number" && !Number.isInteger(value));
  if (kind === str) return typeof value === "string";
  if (kind === bool) return typeof value === "boolean";
  if (kind === list || kind === tuple) return Array.isArray(value);
  if (kind === Dict || kind === dict) return value instanceof Dict;
  return value instanceof (kind.$class ?? kind);
}

/** @param {Any} value */
function type(value) {
  if (typeof value === "boolean") return bool;
  if (typeof value === "string") return str;
  if (typeof value === "number") return Number.isInteger(value) ? int_ : float_;
  if (value instanceof Float) return float_;
  return Array.isArray(value) ? list : value?.$create ?? value?.constructor ?? null;
}

// ---- built-ins

/** @param {Any} [values] */
const list = (values = []) => [...iter(values)];
/** @param {Any} [values] */
const tuple = (values = []) => [...iter(values)];
/** @param {Any} [pairs] */
const dict = (pairs) => new Dict(pairs);
dict.$class = Dict;
/** @param {Any} keys @param {Any} [value] */
dict.fromkeys = (keys, value = null) => new Dict([...iter(keys)].map((key) => [key, value]));
/** @param {Any} [values] */
const set_ = (values = []) => new PySet(values);
/** @param {Any} value */
const int_ = (value) => Math.trunc(known(value));
/** @param {Any} [value] */
const float_ = (value = 0) => {
  if (typeof value !== "string") return known(value);
  if (!/^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$/i.test(value)) throw new ValueError(`could not convert ${repr(value)}`);
  return Number(value);
};
const sorted = fn((/** @type {Any} */ values, /** @type {Any} */ key = null, /** @type {Any} */ reverse = false) => {
  const made = [...iter(values)].map((value) => [key ? key(value) : value, value]);
  made.sort(([a], [b]) => (lt(a, b) ? -1 : lt(b, a) ? 1 : 0));
  return (reverse ? made.reverse() : made).map(([, value]) => value);
}, ["iterable", "key", "reverse"]);
const total = fn((/** @type {Any} */ values, /** @type {Any} */ start = 0) => [...iter(values)].reduce(add, start), ["iterable", "start"]);
/** @param {(best: Any, one: Any) => boolean} better */
const best = (better) => fn((/** @type {Any} */ keywords, /** @type {Any} */ ...given) => {
  const values = given.length > 1 ? given : [...iter(given[0])];
  if (!values.length && "default" in keywords) return keywords.default;
  return values.reduce((found, one) => (better(found, one) ? one : found));
}, [], true);
const zip = fn((/** @type {Any} */ { strict = false }, /** @type {Any} */ ...lists) => {
  const all = lists.map((one) => [...iter(one)]), lengths = all.map((one) => one.length);
  if (strict && new Set(lengths).size > 1) throw new ValueError("zip() argument lengths differ");
  return Array.from({ length: lengths.length ? Math.min(...lengths) : 0 }, (_, at) => all.map((one) => one[at]));
}, [], true);
/** @param {Any} values @param {Any} other */
const next = (values, other) => {
  if (typeof values.next === "function") return values.next().value;
  if (values.length || other !== undefined) return values.length ? values[0] : other;
  throw new Error("StopIteration");
};
/** @param {number} from @param {number} [to] */
const range = (from, to) => (to === undefined ? Array.from({ length: Math.max(0, from) }, (_, at) => at) : Array.from({ length: Math.max(0, to - from) }, (_, at) => from + at));
/** @param {Any} value @param {string} name @param {Any} [other] */
const getattr = (value, name, other) => {
  if (!(name in value) && other === undefined) throw new Error(`AttributeError: ${name}`);
  return name in value ? value[name] : other;
};
for (const name of ["sum", "cumsum"]) /** @type {Any} */ (Table.prototype)[name].$names = ["axis"];
/** The functions of one text whose values are all known. @param {Any} values */
const table = (values) => (/** @type {Any} */ key) => values.get(key);
/** @param {Any} keywords */
const spread = (keywords) => Object.fromEntries(items(keywords));
const numpy = {
  /** @param {[number, number]} shape */
  zeros: ([rows, columns]) => new Table(rows, columns),
  array: list,
};

/** A regular expression of Python that means the same here. @param {string} pattern */
const expression = (pattern) => new RegExp(pattern.replace(/\(\?P</g, "(?<"), "u");

/** JSON as Python reads it: objects as dictionaries, and 1.0 as no whole number. @param {string} text @returns {Any} */
function json(text) {
  const told = text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (one) => (/^-?\d+$|^"/.test(one) ? one : `{"$float":${one}}`));
  JSON.parse(text); // errors are those of the text as it is
  return JSON.parse(told, (_, value) => {
    if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
    if ("$float" in value) return Number.isInteger(value.$float) ? new Float(value.$float) : value.$float;
    return new Dict(Object.entries(value));
  });
}

/** As JavaScript has it: dictionaries as objects. @param {Any} value @returns {Any} */
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Dict) return Object.fromEntries(value.items().map(([key, one]) => [key, plain(one)]));
  return value;
}

return {
  add, sub, mul, or_, iadd, ior_, imul: mul, isub: sub, eq, lt, le, has, item, set, update, slice, iter, items, len, bool,
  div: (/** @type {Any} */ a, /** @type {Any} */ b) => known(a) / known(b),
  floordiv: (/** @type {Any} */ a, /** @type {Any} */ b) => Math.floor(known(a) / known(b)),
  mod: (/** @type {Any} */ a, /** @type {Any} */ b) => ((known(a) % known(b)) + b) % b,
  pow: (/** @type {Any} */ a, /** @type {Any} */ b) => known(a) ** known(b),
  lshift: (/** @type {Any} */ a, /** @type {Any} */ b) => known(a) * 2 ** known(b),
  is: (/** @type {Any} */ a, /** @type {Any} */ b) => (a ?? null) === (b ?? null),
  and: (/** @type {Any} */ first, /** @type {(() => Any)[]} */ ...others) => { let value = first; for (const one of others) { if (!bool(value)) break; value = one(); } return value; },
  or: (/** @type {Any} */ first, /** @type {(() => Any)[]} */ ...others) => { let value = first; for (const one of others) { if (bool(value)) break; value = one(); } return value; },
  call, attribute, fn, kw, method, cached, contextmanager, enter, leave, class_, isinstance, type, spread, table,
  kwargs: (/** @type {Any} */ keywords) => new Dict(Object.entries(keywords)),
  format, repr, str, round, int_, float_, list, tuple, dict, set_, frozenset: set_, sorted, sum: total, zip, next, range, getattr, plain,
  max: best((found, one) => lt(found, one)),
  min: best((found, one) => lt(one, found)),
  all: (/** @type {Any} */ values) => [...iter(values)].every(bool),
  any: (/** @type {Any} */ values) => [...iter(values)].some(bool),
  map: (/** @type {Any} */ change, /** @type {Any} */ values) => [...iter(values)].map((one) => change(one)),
  filter: (/** @type {Any} */ keep, /** @type {Any} */ values) => [...iter(values)].filter((one) => bool(keep ? keep(one) : one)),
  enumerate: (/** @type {Any} */ values) => [...iter(values)].map((one, at) => [at, one]),
  reversed: (/** @type {Any} */ values) => [...iter(values)].reverse(),
  callable: (/** @type {Any} */ value) => typeof value === "function",
  ValueError, Dict, numpy,
  object: { __setattr__: (/** @type {Any} */ owner, /** @type {string} */ name, /** @type {Any} */ value) => { owner[name] = value; } },
  math: {
    inf: Infinity, ceil: Math.ceil,
    isfinite: Number.isFinite,
    prod: fn((/** @type {Any} */ values, /** @type {Any} */ start = 1) => [...iter(values)].reduce(mul, start), ["iterable", "start"]),
  },
  collections: { Counter: (/** @type {Any} */ counted) => new Counter(counted), defaultdict: (/** @type {Any} */ make) => new DefaultDict(make) },
  collections_abc: { Mapping: Dict },
  dataclasses: {
    fields: (/** @type {Any} */ of) => (of.$fields ?? []).map((/** @type {[string, (() => Any)?]} */ [name, start]) => ({ name, default: start ? start() : undefined })),
    replace: fn((/** @type {Any} */ keywords, /** @type {Any} */ one) => kw(one.$create, [], { ...Object.fromEntries(one.$fields().map((/** @type {string} */ name) => [name, one[name]])), ...keywords }), ["one"], true),
  },
  functools: { partial: (/** @type {Any} */ called, /** @type {Any} */ ...given) => (/** @type {Any} */ ...more) => called(...given, ...more) },
  itertools: {
    chain: (/** @type {Any} */ ...lists) => lists.flatMap((one) => (Array.isArray(one) ? one : [...iter(one)])),
    count: () => { let at = 0; return { next: () => ({ value: at++ }) }; },
  },
  json: { loads: json, JSONDecodeError: SyntaxError },
  re: {
    fullmatch: (/** @type {string} */ pattern, /** @type {string} */ text) => expression(`^(?:${pattern})$`).exec(text),
    sub: (/** @type {string} */ pattern, /** @type {string} */ other, /** @type {string} */ text) => text.replace(new RegExp(pattern, "gu"), other.replace(/\\(\d)/g, "$$$1")),
  },
  difflib: { get_close_matches: () => [] },
  importlib_metadata: { PackageNotFoundError: ValueError },
};
})();
