// Requests to the server. Each fails with the server's one line.

const name = sessionStorage.getItem("reader") ?? crypto.randomUUID().replaceAll("-", "");
sessionStorage.setItem("reader", name);
const HEADERS = { "X-Reader": name };

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...HEADERS, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Start mois view again; nothing that was done is lost.");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

export const getJson = async (path) => (await ask(path)).json();

export const getBytes = async (path) => (await ask(path)).arrayBuffer();

export async function post(path, body, options = {}) {
  const json = { method: "POST", body: JSON.stringify(body ?? {}), headers: { "Content-Type": "application/json" } };
  return (await ask(path, { ...json, ...options })).json();
}

export const put = async (path, body) => (await ask(path, { method: "PUT", body })).json();

// when the page closes, another page may write
export function leaveAtEnd() {
  addEventListener("pagehide", () => navigator.sendBeacon(`leave?name=${name}`));
}
