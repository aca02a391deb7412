// Registers a passkey, and lets an account go on with one. The session lives in this variable and nowhere else.
let token = "";

const $ = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
const text = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

function say(words, wrong = false) {
  $("said").textContent = words;
  $("said").className = wrong ? "wrong" : "";
}

async function post(path, body, type) {
  const headers = { "content-type": type, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { method: "POST", headers, body, credentials: "omit", redirect: "error" });
  const said = answer.status === 204 ? "" : await answer.text();
  if (answer.ok) return said ? JSON.parse(said) : {};
  const problem = said ? JSON.parse(said) : {};
  throw new Error(problem.detail || problem.error_description || `the server answered ${answer.status}`);
}

const form = (fields) => post("oauth/token", new URLSearchParams(fields), "application/x-www-form-urlencoded");
const json = (path, fields) => post(`webauthn/v1/${path}`, JSON.stringify(fields), "application/json");

// WebAuthn's JSON form, by hand: parseCreationOptionsFromJSON and toJSON are not in every browser yet.
const known = (list) => (list || []).map((one) => ({ ...one, id: bytes(one.id) }));

async function create(options) {
  const user = { ...options.user, id: bytes(options.user.id) };
  const publicKey = { ...options, user, challenge: bytes(options.challenge), excludeCredentials: known(options.excludeCredentials) };
  const made = await navigator.credentials.create({ publicKey });
  const { clientDataJSON, attestationObject } = made.response;
  const response = { clientDataJSON: text(clientDataJSON), attestationObject: text(attestationObject) };
  return { id: made.id, rawId: text(made.rawId), type: made.type, response };
}

async function get(options) {
  const publicKey = { ...options, challenge: bytes(options.challenge), allowCredentials: known(options.allowCredentials) };
  const made = await navigator.credentials.get({ publicKey });
  const { clientDataJSON, authenticatorData, signature } = made.response;
  const response = { clientDataJSON: text(clientDataJSON), authenticatorData: text(authenticatorData), signature: text(signature) };
  return { id: made.id, rawId: text(made.rawId), type: made.type, response };
}

async function login() {
  const fields = { grant_type: "password", username: $("account").value, password: $("password").value, otp: $("code").value };
  token = (await form(fields)).access_token;
  $("who").textContent = $("account").value;
  $("login").reset();
  $("login").hidden = true;
  $("known").hidden = false;
  say("");
}

async function register() {
  if ($("register").dataset.shown !== "yes") await stepUpIfThereIsAPasskey();
  const asked = await json("options", { purpose: "register" });
  await json("register", { challenge: asked.challenge, credential: await create(asked.options), label: $("label").value });
  say("The passkey is registered.");
}

// Whoever has a passkey shows it before another is added; whoever has none yet is told so by the server, which is no failure.
async function stepUpIfThereIsAPasskey() {
  let asked;
  try {
    asked = await json("options", { purpose: "step-up" });
  } catch {
    return;
  }
  const assertion = JSON.stringify(await get(asked.options));
  const grant = "urn:x-modelkeep:oauth:grant-type:step-up";
  token = (await form({ grant_type: grant, subject_token: token, challenge: asked.challenge, assertion })).access_token;
  $("register").dataset.shown = "yes";
}

async function approve() {
  const asked = await json("options", { purpose: "approve" });
  await json("approve", { challenge: asked.challenge, credential: await get(asked.options) });
  say("The account may go on.");
}

async function leave() {
  await post("oauth/revoke", new URLSearchParams({ token }), "application/x-www-form-urlencoded");
  token = "";
  location.reload();
}

function on(id, event, work) {
  $(id).addEventListener(event, async (happened) => {
    happened.preventDefault();
    say("…");
    try {
      await work();
    } catch (failure) {
      say(failure.message, true);
    }
  });
}

on("login", "submit", login);
on("register", "click", register);
on("approve", "click", approve);
on("leave", "click", leave);
