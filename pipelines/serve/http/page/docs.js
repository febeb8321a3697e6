// Renders openapi.json as a readable page, without any outside resource.

const doc = document.getElementById("doc");

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

let schemas = {};

function resolve(schema) {
  return schema?.$ref ? schemas[schema.$ref.split("/").pop()] ?? {} : schema ?? {};
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  const range = [schema.minimum, schema.maximum];
  const bounds = range.some((bound) => bound !== undefined) ? ` ${range[0] ?? ""}…${range[1] ?? ""}` : "";
  return (schema.format === "byte" ? "base64 text" : schema.format === "binary" ? "file" : schema.type ?? "any") + bounds;
}

function fields(schema, depth = 0) {
  const resolved = resolve(schema);
  if (!resolved.properties) return null;
  const table = element("table", ""), inner = [];
  for (const [name, property] of Object.entries(resolved.properties)) {
    const needed = resolved.required?.includes(name) ? element("span", "required", " required") : null;
    const standard = property.default !== undefined && property.default !== null ? ` Default: ${JSON.stringify(property.default)}.` : "";
    table.append(element("tr", "",
      element("td", "", element("code", "", name), needed),
      element("td", "", typeOf(property)),
      element("td", "", ...prose((property.description ?? resolve(property).description ?? "") + standard))));
    const nested = [property, property.items, ...(property.anyOf ?? [])].find((option) => option?.$ref);
    if (nested && depth < 3) inner.push(element("h4", "", typeOf(nested)), fields(nested, depth + 1));
  }
  return element("div", "", table, ...inner);
}

function prose(text) {
  return text.split(/`([^`]+)`/).map((part, i) => (i % 2 ? element("code", "", part) : part));
}

function example(value) {
  const text = JSON.stringify(value, (key, part) => (typeof part === "string" && part.length > 60 && !part.includes(" ") ? `${part.slice(0, 40)}…` : part), 2);
  return element("pre", "", text);
}

function operation(path, verb, spec) {
  const inside = element("div", "inside", spec.description ? element("p", "", spec.description) : null);
  for (const [type, content] of Object.entries(spec.requestBody?.content ?? {})) {
    inside.append(element("h3", "", `Request, ${type}`), fields(content.schema) ?? "");
    for (const [name, { value }] of Object.entries(content.examples ?? {})) inside.append(element("h4", "", name), example(value));
  }
  const form = spec.requestBody?.content?.["multipart/form-data"]?.example;
  if (form) {
    const parts = Object.entries(form).map(([name, value]) => ` -F '${name}=${value}'`).join("");
    inside.append(element("h3", "", "From a shell"), element("pre", "", `curl${parts} ${new URL(path.slice(1), location.href).href}`));
  }
  inside.append(element("h3", "", "Answers"));
  const table = element("table", "");
  for (const [status, response] of Object.entries(spec.responses)) {
    const schema = response.content?.["application/json"]?.schema;
    table.append(element("tr", "",
      element("td", "", element("span", "status", status)),
      element("td", "", schema ? typeOf(schema) : ""),
      element("td", "", response.description)));
  }
  inside.append(table);
  const answer = spec.responses["200"]?.content?.["application/json"]?.schema;
  if (answer) {
    inside.append(element("h4", "", typeOf(answer)), fields(answer) ?? "");
    for (const value of resolve(answer).examples ?? []) inside.append(example(value));
  }
  const details = element("details", "card operation",
    element("summary", "", element("span", `verb ${verb}`, verb.toUpperCase()), element("code", "", path), element("span", "", spec.summary ?? "")),
    inside);
  details.open = verb === "post";
  return details;
}

try {
  const spec = await (await fetch("openapi.json")).json();
  schemas = spec.components?.schemas ?? {};
  document.title = `API of ${spec.info.title}`;
  document.getElementById("openapi-version").textContent = spec.openapi;
  doc.replaceChildren(element("h1", "", spec.info.title), element("p", "", spec.info.description ?? ""));
  const operations = Object.entries(spec.paths).flatMap(([path, verbs]) => Object.entries(verbs).map(([verb, details]) => [path, verb, details]));
  operations.sort((a, b) => (b[1] === "post") - (a[1] === "post"));
  for (const parts of operations) doc.append(operation(...parts));
  const error = schemas.ErrorBody;
  doc.append(element("section", "card", element("h3", "", "Errors"), element("p", "", error?.description ?? ""), ...(error?.examples ?? []).map(example)));
} catch (error) {
  doc.replaceChildren(element("div", "notice", `openapi.json cannot be read: ${error.message}`));
}
