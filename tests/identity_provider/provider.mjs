// An identity provider on a free port of this machine: node-oidc-provider, with clients that are services.
//
// It prints its address as one line of JSON. POST /test/keys with a JWK set (private keys) rotates its keys.
import { createServer } from 'node:http';
import { randomBytes } from 'node:crypto';
import { Provider } from 'oidc-provider';

const ROLES = { scoring: ['scorers'], stranger: ['guests'], bound: ['scorers'], shown: ['scorers'] };

function service(id, more = {}) {
  return {
    client_id: id,
    client_secret: `${id}-secret`,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    token_endpoint_auth_method: 'client_secret_basic',
    id_token_signed_response_alg: 'ES256',
    ...more,
  };
}

function configuration(keys) {
  return {
    jwks: { keys },
    clients: [
      service('scoring'),
      service('stranger'),
      service('bound', { dpop_bound_access_tokens: true }),
      service('shown', { tls_client_certificate_bound_access_tokens: true }),
    ],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        getCertificate: (ctx) => Buffer.from(ctx.get('x-test-certificate'), 'base64').toString() || undefined,
      },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: 'predict',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: keys[0].alg } },
        }),
      },
    },
    extraTokenClaims: (_ctx, token) => ({ groups: ROLES[token.clientId] ?? [] }),
  };
}

let issuer;
let handle;

function rotate(keys) {
  handle = new Provider(issuer, configuration(keys)).callback();
}

const server = createServer((request, response) => {
  if (request.url !== '/test/keys') return handle(request, response);
  const parts = [];
  request.on('data', (part) => parts.push(part));
  return request.on('end', () => {
    rotate(JSON.parse(Buffer.concat(parts)).keys);
    response.end('{}');
  });
});

server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  rotate(JSON.parse(process.argv[2]).keys);
  process.stdout.write(`${JSON.stringify({ issuer })}\n`);
});
