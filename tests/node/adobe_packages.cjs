// Asks IMS for tokens by Adobe's own packages, and prints what they make of its answers.
const coreAuth = require('@adobe/aio-lib-core-auth');
const { ServerToServerTokenProvider } = require('@adobe/firefly-services-common-apis');

const { CLIENT_ID: clientId, PLAIN_SECRET: plainSecret, ODD_SECRET: oddSecret } = process.env;
const scopes = ['openid', 'AdobeID', 'firefly_api', 'ff_apis'];

async function main() {
  const params = { clientId, clientSecret: oddSecret, orgId: '1@AdobeOrg', scopes: [...scopes] };
  const production = await coreAuth.generateAccessToken(params, 'prod');
  const cached = await coreAuth.generateAccessToken(params, 'prod');
  const stage = await coreAuth.generateAccessToken(params, 'stage');
  const refusal = await coreAuth
    .generateAccessToken({ ...params, clientSecret: 'wrong' }, 'prod')
    .catch(({ name, code, message, sdkDetails }) => ({ name, code, message, sdkDetails }));

  const firefly = new ServerToServerTokenProvider(
    { clientId, clientSecret: plainSecret, scopes: scopes.join(',') },
    { autoRefresh: true },
  );
  const first = await firefly.getToken();
  const second = await firefly.getToken();

  console.log(JSON.stringify({ production, cached, stage, refusal, first, second }));
}

main();
