// An authorization server that has the client credentials grant where IMS has it. Prints its port,
// then a line for each token request that it has answered. SECONDS is how long its tokens live.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const { CLIENT_ID, CLIENT_SECRET, SECONDS } = process.env;
const server = createServer();

server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [
      {
        client_id: CLIENT_ID,
        client_secret: CLIENT_SECRET,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        scope: 'openid firefly_api',
        // As IMS: in the form.
        token_endpoint_auth_method: 'client_secret_post',
      },
    ],
    cookies: { keys: ['not used: there is no browser'] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: {
        enabled: true,
        allowedPolicy: (_, client, token) => token.clientId === client.clientId,
      },
    },
    routes: { token: '/ims/token/v3', introspection: '/introspect' },
    // The last one is not the client's.
    scopes: ['openid', 'firefly_api', 'ff_apis'],
    ttl: { ClientCredentials: Number(SECONDS) },
  });
  provider.on('grant.success', () => console.log('granted'));
  provider.on('grant.error', (_, error) => console.log(`refused: ${error.error}`));
  server.on('request', provider.callback());
  console.log(port);
});
