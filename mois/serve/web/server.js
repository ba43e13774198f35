// Requests to the server. Each fails with the server's one line.

const name = sessionStorage.getItem("reader") ?? crypto.randomUUID().replaceAll("-", "");
sessionStorage.setItem("reader", name);
const HEADERS = { "X-Reader": name };

// the server ended, or cannot be reached
export class Gone extends Error {
  constructor() {
    super("The server does not answer. The latest action may be lost; nothing before it is.");
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...HEADERS, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone();
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

// the body of an answer; the server may end while it sends it
const whole = (body) =>
  body.catch(() => {
    throw new Gone();
  });

export const getJson = async (path, options) => whole((await ask(path, options)).json());

export const getBytes = async (path) => whole((await ask(path)).arrayBuffer());

export async function post(path, body, options = {}) {
  const json = { method: "POST", body: JSON.stringify(body ?? {}), headers: { "Content-Type": "application/json" } };
  return whole((await ask(path, { ...json, ...options })).json());
}

export const put = async (path, body) => whole((await ask(path, { method: "PUT", body })).json());

// when the page closes, another page may write
export function leaveAtEnd() {
  addEventListener("pagehide", () => navigator.sendBeacon(`leave?name=${name}`));
}
