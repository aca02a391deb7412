// A client that others wrote (oauth4webapi): gets a DPoP-bound token at the provider and asks the gateway with it.
//
// Arguments: issuer, resource, address to POST to, body. NODE_EXTRA_CA_CERTS says whom it trusts. It prints JSON: the statuses of
// the gateway's answers (503 while it does not know us, 401 when it asks for its nonce), and that of the same token as a bearer.
import * as oauth from 'oauth4webapi';

const [issuer, resource, address, body] = process.argv.slice(2);
const plain = { [oauth.allowInsecureRequests]: true };
const url = new URL(issuer);
const server = await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, plain));
const client = { client_id: 'bound' };
const secret = oauth.ClientSecretBasic('bound-secret');
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair('ES256'));

async function twice(ask) {
  try {
    return await ask();
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error;
    return ask();
  }
}

const granted = await twice(async () => {
  const parameters = new URLSearchParams({ resource, scope: 'predict' });
  const answer = await oauth.clientCredentialsGrantRequest(server, client, secret, parameters, { DPoP, ...plain });
  return oauth.processClientCredentialsResponse(server, client, answer);
});

const statuses = [];
const headers = new Headers({ 'content-type': 'application/json' });
async function ask() {
  try {
    const answer = await oauth.protectedResourceRequest(granted.access_token, 'POST', new URL(address), headers, body, { DPoP });
    statuses.push(answer.status);
    return answer;
  } catch (error) {
    statuses.push(error.status ?? error.response?.status ?? String(error));
    throw error;
  }
}

let answer = await twice(ask);
for (let n = 0; answer.status === 503 && n < 40; n += 1) {
  await new Promise((resolve) => setTimeout(resolve, 250));
  answer = await twice(ask);
}
const bearer = await fetch(address, {
  method: 'POST', body, headers: { 'content-type': 'application/json', authorization: `Bearer ${granted.access_token}` },
});
process.stdout.write(JSON.stringify({ type: granted.token_type, statuses, bearer: bearer.status, answer: await answer.json() }));
